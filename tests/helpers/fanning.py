"""Pipelines and executors for work that is handed out: some make themselves in the worker, some take it down."""

import multiprocessing
import os
import signal
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from helpers.calibrating import Captioned


def processes(workers: int) -> ProcessPoolExecutor:
    """Forked, because tests need no device and have loaded everything."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))


def captioned() -> Captioned:
    return Captioned()


class Deadly(Captioned):
    """Takes its process down at its `when`-th run, once for all workers, or every time where there is no `mark`."""

    def __init__(self, when: int, mark: Path | None = None) -> None:
        super().__init__()
        self.when, self.mark, self.home = when, mark, os.getpid()

    def __call__(self, *args, **kwargs):
        due = self.runs == self.when and os.getpid() != self.home
        if due and (self.mark is None or not self.mark.exists()):
            if self.mark is not None:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*args, **kwargs)


class Elsewhere(Executor):
    """A machine that does not see this one's files."""

    def __init__(self) -> None:
        self.sent = 0

    def submit(self, fn, /, source, cell):
        self.sent += bool(source.contents)
        done: Future = Future()
        done.set_result(fn(replace(source, path="/nowhere"), cell))
        return done
