"""Pipelines and executors for work that is handed out: some make themselves in the worker, some take it down; and what
replicas of a server are made with: they say who they are, and wait to be let go.
"""

import multiprocessing
import os
import signal
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import dicache.reference
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


def begin_ray(**options) -> None:
    """It gives itself half a minute to begin, which a busy machine may not: three times."""
    import ray

    for attempt in range(3):
        try:
            ray.init(include_dashboard=False, log_to_driver=False, **options)
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
        else:
            return


class Elsewhere(Executor):
    """A machine that does not see this one's files."""

    def __init__(self) -> None:
        self.sent = 0

    def submit(self, fn, /, source, cell):
        self.sent += bool(source.contents)
        done: Future = Future()
        done.set_result(fn(replace(source, path="/nowhere"), cell))
        return done


GO = "go"


def marked(folder: Path) -> Any:
    """The reference pipeline, which leaves a file `replica-<process>` and draws once there is a file `go`."""
    pipe = dicache.reference.pipeline()
    kind = type(pipe)

    def draws(self: Any, *args: Any, **kwargs: Any) -> Any:
        while not (folder / GO).exists():
            time.sleep(0.02)
        return kind.__call__(self, *args, **kwargs)

    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": wraps(kind.__call__)(draws)})
    (folder / f"replica-{os.getpid()}").touch()
    return pipe


def replicas(folder: Path) -> list[int]:
    """Their processes, in the order in which they came."""
    paths = sorted(folder.glob("replica-*"), key=lambda path: path.stat().st_mtime_ns)
    return [int(path.name.partition("-")[2]) for path in paths]
