"""A daemon of a test's own, which it can kill and start again at the same place."""

import os
import subprocess
import tempfile
import time

# Longer than any pause of a loaded machine.
PATIENCE_S = 60


class Daemon:
    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self.socket = os.path.join(self._folder.name, "kv.sock")
        self._config = os.path.join(self._folder.name, "kv.toml")
        self._process = None
        with open(self._config, "w") as config:
            config.write(
                f'[kv]\nram_gib = 0.0625\ncores = 1\nuds = "{self.socket}"\nmetrics_listen = "127.0.0.1:0"\n'
                'resp_listen = "127.0.0.1:0"\n[kv.limits]\nblock_mib_max = 8\n'
            )

    def start(self):
        self._process = subprocess.Popen(
            [os.environ["CGN_KVCACHED"], "--config", self._config],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "RUST_LOG": "warn"},
        )
        line = self._process.stdout.readline()
        assert line.startswith("metrics http://"), line
        return self

    def kill(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def close(self):
        self.kill()
        self._folder.cleanup()


def until(done):
    """Waits for `done()` to be true, and gives what it gave."""
    end_s = time.monotonic() + PATIENCE_S
    while not (result := done()):
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.005)
    return result
