"""`cognitora_link.py` and `cognitora_worker.py`: connecting again, holes in prefixes, order and bounds."""

import os
import random
import subprocess
import sys
import threading
import unittest

from cognitora_kv import Error
from cognitora_link import HOLES_MAX, NAMESPACE_BYTES_MAX, PAUSE_S_MAX, Down, Link, namespace_of, present
from cognitora_worker import Worker

from daemon import Daemon, until


class Held:
    """A client that knows some names."""

    def __init__(self, names):
        self.names = names

    def lookup(self, names):
        depth = next((at for at, name in enumerate(names) if name not in self.names), len(names))
        return ["ram"] * depth


class Task:
    def __init__(self, log, name, turns=1, gate=None):
        self.log, self.name, self.turns, self.gate = log, name, turns, gate

    def step(self):
        if self.gate is not None:
            self.gate.wait()
        self.log.append(self.name)
        self.turns -= 1
        return self.turns == 0

    def fail(self, reason):
        self.log.append(f"{self.name} failed")


class Broken(Task):
    def step(self):
        raise KeyError("a mistake")


class LinkTest(unittest.TestCase):
    def setUp(self):
        self.daemon = Daemon()
        self.addCleanup(self.daemon.close)
        self.now_s = 0.0
        self.link = Link(self.daemon.socket, "link", staging_bytes=1 << 20, clock=lambda: self.now_s)

    def ask(self):
        return self.link.ask(lambda client: client.lookup([bytes(32)]))

    def test_tries_again_after_growing_pauses_only(self):
        pauses = []
        for _ in range(10):
            with self.assertRaisesRegex(Down, "kv.sock"):
                self.ask()
            pause_s = self.link._not_before_s - self.now_s
            self.now_s += 0.99 * pause_s
            with self.assertRaisesRegex(Down, "waiting"):
                self.ask()
            self.now_s += 0.02 * pause_s
            pauses.append(round(pause_s, 3))
        self.assertEqual(pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, PAUSE_S_MAX, PAUSE_S_MAX, PAUSE_S_MAX])
        self.daemon.start()
        self.now_s += PAUSE_S_MAX
        self.assertEqual(self.ask(), [])
        self.daemon.kill()
        with self.assertRaises(Down):
            self.ask()
        self.assertLess(self.link._not_before_s - self.now_s, 0.15, "a success starts the pauses again")

    def test_a_daemon_started_again_is_used_at_once(self):
        self.daemon.start()
        self.ask()
        self.daemon.kill()
        self.daemon.start()
        self.assertEqual(self.ask(), [])
        self.assertEqual(self.link.losses, 1)

    def test_a_refusal_is_no_loss(self):
        self.daemon.start()
        with self.assertRaises(Error):
            self.link.ask(lambda client: client.put(bytes(32), b"x", parent=bytes([1]) * 32))
        self.assertEqual(self.ask(), [])
        self.assertEqual(self.link.losses, 0)

    def test_threads_lose_one_connection_together(self):
        self.daemon.start()
        self.ask()
        self.daemon.kill()
        results = []

        def lose():
            try:
                self.ask()
            except Down:
                results.append("down")

        threads = [threading.Thread(target=lose) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, ["down"] * 8)
        self.assertEqual(self.link.losses, 1)


class PresentTest(unittest.TestCase):
    def test_is_what_a_look_at_each_says(self):
        source = random.Random(1)
        for _ in range(300):
            names = [source.randbytes(32) for _ in range(source.randrange(40))]
            held = {name for name in names if source.random() < source.choice([0.1, 0.5, 0.95])}
            self.assertEqual(present(Held(held), names), [name in held for name in names])

    def test_gives_up_behind_many_holes(self):
        names = [bytes([number % 256, number // 256]) * 16 for number in range(1000)]
        found = present(Held(set(names[500:])), names)
        self.assertEqual(found, [False] * 1000)
        found = present(Held(set(names[HOLES_MAX - 1 :])), names)
        self.assertEqual(found, [False] * (HOLES_MAX - 1) + [True] * (1001 - HOLES_MAX))

    def test_namespaces_differ_with_the_facts_and_fit(self):
        long = namespace_of("vllm", "é" * 500, ("a", 1))
        self.assertLessEqual(len(long.encode()), NAMESPACE_BYTES_MAX)
        self.assertEqual(long, namespace_of("vllm", "é" * 500, ("a", 1)))
        self.assertNotEqual(long, namespace_of("vllm", "é" * 500, ("a", 2)))
        self.assertNotIn("\n", namespace_of("vllm", "a\nb", ()))


class WorkerTest(unittest.TestCase):
    def test_urgent_tasks_go_between_the_turns_of_others(self):
        log, gate = [], threading.Event()
        worker = Worker("test", 10)
        worker.submit(Task(log, "long", turns=3, gate=gate), is_urgent=False)
        until(lambda: worker._is_busy)
        worker.submit(Task(log, "later"), is_urgent=False)
        worker.submit(Task(log, "urgent"), is_urgent=True)
        gate.set()
        worker.drain()
        self.assertEqual(log, ["long", "urgent", "long", "long", "later"])
        self.assertTrue(worker.is_idle())
        worker.stop()

    def test_what_does_not_fit_fails_at_once_and_the_rest_at_the_end(self):
        log, gate = [], threading.Event()
        worker = Worker("test", 2)
        worker.submit(Task(log, "a", turns=2, gate=gate), is_urgent=False)
        until(lambda: worker._is_busy)
        worker.submit(Task(log, "b"), is_urgent=False)
        worker.submit(Task(log, "c"), is_urgent=False)
        self.assertEqual(log, ["c failed"])
        stopping = threading.Thread(target=worker.stop)
        stopping.start()
        until(lambda: worker._is_stopped)
        gate.set()
        stopping.join()
        self.assertEqual(log, ["c failed", "a", "a failed", "b failed"])
        worker.submit(Task(log, "d"), is_urgent=True)
        self.assertEqual(log[-1], "d failed")
        worker.drain()

    def test_a_mistake_fails_its_task_only(self):
        log = []
        worker = Worker("test", 10)
        with self.assertLogs("cognitora", "ERROR"):
            worker.submit(Broken(log, "broken"), is_urgent=True)
            worker.submit(Task(log, "good"), is_urgent=True)
            worker.drain()
        self.assertEqual(log, ["broken failed", "good"])
        worker.stop()


class ImportTest(unittest.TestCase):
    def test_without_an_engine_the_modules_say_what_is_missing(self):
        for module, made in [
            ("cognitora_vllm", "CognitoraTier(None, None, 'x')"),
            ("cognitora_sglang", "CognitoraHiCache(None)"),
        ]:
            engine = module.removeprefix("cognitora_")
            program = f"import sys; sys.modules['{engine}'] = None\nimport {module}\n{module}.{made}"
            run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
            self.assertEqual(run.returncode, 1)
            self.assertRegex(run.stderr, "ImportError: (vLLM|SGLang) with .* is needed")

    def test_without_the_library_a_link_says_what_to_do(self):
        program = "from cognitora_link import Link; Link('/nowhere', 'x', staging_bytes=0)"
        environment = {**os.environ, "COGNITORA_KV_LIB": "/nowhere/libkvclient.so"}
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        self.assertIn("name it in the environment variable COGNITORA_KV_LIB", run.stderr)


unittest.main()
