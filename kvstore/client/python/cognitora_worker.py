"""One thread that does what must not be waited for, in turns: urgent tasks first, then the others in their order.

Owns the queues, both bounded. A task has `step()`, one turn, true when it is done; and `fail(reason)`, called at
most once instead of further turns: when there is no room for the task, when a turn raised, or at the end. Knows
nothing of what a task does.
"""

import logging
import threading
from collections import deque

from cognitora_kv import Error
from cognitora_link import Down

logger = logging.getLogger("cognitora")


class Worker:
    def __init__(self, name, tasks_max):
        self._tasks_max = tasks_max
        self._changed = threading.Condition()
        self._urgent, self._patient = deque(), deque()
        self._is_busy, self._is_stopped = False, False
        # Of the process, not of it alone: an engine that is killed must not wait for this.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, task, *, is_urgent):
        """Takes a task, or fails it at once."""
        queue = self._urgent if is_urgent else self._patient
        with self._changed:
            if not self._is_stopped and len(queue) < self._tasks_max:
                queue.append(task)
                self._changed.notify_all()
                return
        task.fail("the worker is stopped, or has too much to do")

    def is_idle(self):
        with self._changed:
            return not (self._is_busy or self._urgent or self._patient)

    def drain(self):
        """Waits until all is done. Every turn ends, as every call to the daemon does."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or not (self._is_busy or self._urgent or self._patient))

    def stop(self):
        """Ends the turn that runs, and fails the rest."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self):
        while (turn := self._next()) is not None:
            queue, task = turn
            is_done = self._step(task)
            with self._changed:
                self._is_busy = False
                if is_done:
                    queue.popleft()
                self._changed.notify_all()
        for task in (*self._urgent, *self._patient):
            task.fail("the worker is stopped")

    def _next(self):
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._urgent or self._patient)
            if self._is_stopped:
                return None
            self._is_busy = True
            queue = self._urgent or self._patient
            return queue, queue[0]

    @staticmethod
    def _step(task):
        try:
            return task.step()
        except (Down, Error) as error:
            task.fail(error)
        except Exception as error:  # A mistake here must not end the engine, or leave a job open for ever.
            logger.exception("a task of the KV daemon's plug-in failed")
            task.fail(error)
        return True
