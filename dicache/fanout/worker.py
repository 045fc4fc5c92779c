"""What runs where a cell of work is handed to: the pipeline comes once, the cells one after the other.

A thread of this process gets a copy of the pipeline, because one denoiser has one owner thread. Another process reads
the pipeline from the file that it was written to, or makes it by the function that was given in its place. Where that
file cannot be seen, on another machine, the worker answers so, and is sent the contents with its next cell.
"""

import copy
import io
import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch


@dataclass
class Worker:
    """What a cell of work runs with."""

    pipe: Any
    memory: dict[Any, Any] = field(default_factory=dict)
    """Of what several cells of one worker need, made by the first of them."""
    tell: Callable[[str], object] = str
    """Called by a cell for each of its runs, where somebody here is listening."""

    def recall(self, key: Any, make: Callable[[], Any]) -> Any:  # noqa: ANN401
        """What `make` gave for this key in this worker, made at most once."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]


class WorkCell(Protocol):
    """A piece of work that can be pickled, whose result does not depend on where it runs."""

    def run(self, worker: Worker) -> Any: ...  # noqa: ANN401


class Lacking:
    """What a worker answers that cannot read the pipeline."""


@dataclass(frozen=True)
class PipelineSource:
    """Where a worker has its pipeline from."""

    token: str
    """Of one piece of work: a worker that has another one's pipeline lets go of it."""
    threads: int
    """Of torch's operations, as many as in the process that hands out: their number decides last bits."""
    original: Any = None
    """The pipeline itself or the function that makes it, for threads of this process; never pickled."""
    made: bool = False
    """Whether `original` makes it."""
    path: str = ""
    contents: bytes = b""

    def worker(self) -> "Worker | None":
        """This thread's own; None where the pipeline cannot be read."""
        here = (os.getpid(), threading.get_ident())
        token, worker = _WORKERS.get(here, ("", None))
        if token == self.token:
            return worker
        _WORKERS.pop(here, None)  # two pipelines may not fit on one device
        pipe = self._pipe()
        if pipe is None:
            return None
        worker = Worker(pipe)
        _WORKERS[here] = (self.token, worker)
        return worker

    def _pipe(self) -> Any:  # noqa: ANN401
        if self.original is not None:
            with _COPYING:
                return self.original() if self.made else copy.deepcopy(self.original)
        if not self.contents and not Path(self.path).exists():
            return None
        torch.set_num_threads(self.threads)
        with io.BytesIO(self.contents) if self.contents else Path(self.path).open("rb") as file:
            content, made = pickle.load(file)  # written by the process that hands out, for its own workers
        return content() if made else content

    def with_contents(self) -> "PipelineSource":
        return replace(self, contents=Path(self.path).read_bytes())

    def release(self) -> None:
        """Let go of what threads of this process have of it."""
        for here in [here for here, (token, _) in list(_WORKERS.items()) if token == self.token]:
            _WORKERS.pop(here, None)


_WORKERS: dict[tuple[int, int], tuple[str, Worker]] = {}
"""By process and thread: the one pipeline that each has."""
_COPYING = threading.Lock()


def run(source: PipelineSource, cell: WorkCell) -> Any:  # noqa: ANN401
    """The result of a cell, where it was handed to; `Lacking` where the pipeline cannot be read."""
    worker = source.worker()
    return Lacking() if worker is None else cell.run(worker)
