"""Hands cells of work to any `concurrent.futures.Executor`, and takes their results as they come.

    with Workers(pipe, executor, resume) as workers:
        for cell, result in workers.each(cells): ...

Results must not depend on the order in which they come: whoever asks puts them where they belong. Without an executor
cells run here, one after the other, on the pipeline itself, so that alone and with workers the same code runs.

A worker that dies takes its cell with it, and a pool of processes all that were running. They are handed out again, on
the same executor if it takes work still (Ray), on a fresh one if a function that makes executors was given; a cell that
was lost three times ends the work. What had been done by then is where the caller wrote it.
"""

import os
import pickle
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from dicache.api import denoisers
from dicache.errors import CopyError, UnsupportedModelError, WorkerError
from dicache.fanout.worker import Lacking, PipelineSource, WorkCell, Worker, run

C = TypeVar("C", bound=WorkCell)
Executors = Executor | Callable[[], Executor]
"""What work may be handed to: an executor, or a function that makes one, with which a lost pool is replaced."""
LOST = 3
"""Times that a worker may be lost over one cell."""
UNPICKLED = (pickle.PicklingError, AttributeError, TypeError)
"""What pickle raises for what it cannot take."""


def is_factory(pipe: Any) -> bool:  # noqa: ANN401
    """Whether it makes a pipeline, and is none."""
    if not callable(pipe) or isinstance(pipe, type | nn.Module):
        return False
    try:
        denoisers(pipe)
    except UnsupportedModelError:
        return True
    return False


def resuming(checkpoint: str | Path | None) -> str:
    """How a call that lost its workers is gone on with."""
    if checkpoint is None:
        return "Give checkpoint='folder' too: then the same call can go on where it was."
    return f"What was done is in the checkpoint {checkpoint}: the same call goes on there."


class Workers:
    """Raises WorkerError for an executor that is none, a pipeline that cannot be sent, and lost workers."""

    resume: str
    queue: deque[Any]
    waiting: Iterator[Any]
    alone: bool
    renewals: int
    pipe: Any
    made: bool
    tell: Callable[[str], object]

    def __init__(self, pipe: Any, executor: Executors | None, resume: str) -> None:  # noqa: ANN401
        if executor is not None and not isinstance(executor, Executor) and not callable(executor):
            raise WorkerError(
                f"executor is {executor!r:.60}. Expected a concurrent.futures.Executor, dicache.ray.executor(n), or a "
                "function that makes one."
            )
        self.resume, self.queue, self.waiting = resume, deque[Any](), _nothing()
        self.make: Callable[[], Executor] | None = None if isinstance(executor, Executor) else executor
        self.executor = executor if isinstance(executor, Executor) else None
        self.alone, self.renewals = executor is None, 0
        self.pipe, self.made = pipe, is_factory(pipe)
        self.source: PipelineSource | None = None
        self.own: Worker | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shut()
        if self.source is not None:
            self.source.release()
            if self.source.path:
                Path(self.source.path).unlink(missing_ok=True)
        self.source = self.own = None

    def one(self, cell: WorkCell) -> Any:  # noqa: ANN401
        """The result of one cell."""
        ((_, result),) = self.each([cell])
        return result

    def each(self, cells: Iterable[C], tell: Callable[[str], object] = str) -> Iterator[tuple[C, Any]]:
        """Every cell with its result, as they are done; cells are taken when a worker has time for them. Cells that run
        here call `tell` on the way (`Worker.tell`). Raises what a cell raises; what waits is then not begun.
        """
        self.waiting, self.tell = iter(cells), tell
        try:
            yield from self._here() if self.alone else self._there()
        finally:
            self.queue.clear()

    def _next(self) -> Any:  # noqa: ANN401
        """What is handed out next; None where nothing waits."""
        return self.queue.popleft() if self.queue else next(self.waiting, None)

    def _here(self) -> Iterator[tuple[Any, Any]]:
        if self.own is None:
            self.own = Worker(self.pipe() if self.made else self.pipe)
        while (cell := self._next()) is not None:
            self.own.tell = self.tell
            yield cell, cell.run(self.own)

    def _there(self) -> Iterator[tuple[Any, Any]]:
        running: dict[Future[Any], WorkCell] = {}
        lost: dict[int, int] = {}
        try:
            while self._fill(running):
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    try:
                        result = self._result(future)
                    except BrokenExecutor as error:
                        self._lose(cell, lost, error)
                        continue
                    if isinstance(result, Lacking):
                        running[self._submit(cell, contents=True)] = cell
                        continue
                    self.renewals = 0
                    yield cell, result
        finally:
            for future in running:
                future.cancel()

    def _fill(self, running: dict[Future[Any], WorkCell]) -> bool:
        """Hand out what waits, no more than keeps the workers busy: results of some cells are more cells. Whether
        anything runs.
        """
        most = 2 * (getattr(self._executor(), "_max_workers", None) or os.cpu_count() or 1)
        while len(running) < most and (cell := self._next()) is not None:
            try:
                running[self._submit(cell)] = cell
            except BrokenExecutor as error:
                self.queue.appendleft(cell)
                if running:  # those that were lost with it come back first
                    break
                self._renew(error)
        return bool(running)

    def _submit(self, cell: WorkCell, *, contents: bool = False) -> Future[Any]:
        executor = self._executor()
        if self.source is None:
            self.source = self._shared(isinstance(executor, ThreadPoolExecutor))
        return executor.submit(run, self.source.with_contents() if contents else self.source, cell)

    def _result(self, future: Future[Any]) -> Any:  # noqa: ANN401
        try:
            return future.result()
        except UNPICKLED as error:
            if "pickle" not in str(error):
                raise
            raise WorkerError(
                f"work cannot be sent to workers: {error}. Expected arguments that can be pickled: functions of a "
                "module, no lambdas. Threads need no pickling."
            ) from error

    def _lose(self, cell: WorkCell, lost: dict[int, int], error: BaseException) -> None:
        """Take a cell back whose worker was lost."""
        lost[id(cell)] = lost.get(id(cell), 0) + 1
        if lost[id(cell)] >= LOST:
            raise WorkerError(f"a worker was lost {LOST} times over the same work ({error}). {self.resume}") from error
        self.queue.appendleft(cell)

    def _renew(self, error: BaseException) -> None:
        """Another executor in the place of a broken one. Raises WorkerError where there is none."""
        if self.make is None:
            raise WorkerError(
                f"a worker was lost, and this {type(self.executor).__name__} takes no more work ({error}). "
                f"{self.resume} Give a function that makes executors, executor=lambda: ProcessPoolExecutor(2) for "
                "example, and a lost one is replaced."
            ) from error
        self.renewals += 1
        if self.renewals > LOST:
            raise WorkerError(f"{LOST} executors broke one after the other ({error}). {self.resume}") from error
        self._shut()

    def _executor(self) -> Executor:
        if self.executor is None:
            assert self.make is not None
            self.executor = self.make()
            if not isinstance(self.executor, Executor):
                raise WorkerError(f"executor=... made a {type(self.executor).__name__}, not an Executor.")
        return self.executor

    def _shut(self) -> None:
        """End what was made here; an executor of the caller's goes on."""
        if self.make is not None and self.executor is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
            self.executor = None

    def _shared(self, threads: bool) -> PipelineSource:
        """What every worker gets once."""
        token, intra = uuid.uuid4().hex, torch.get_num_threads()
        if threads:
            return PipelineSource(token, intra, original=self.pipe, made=self.made)
        handle, path = tempfile.mkstemp(prefix="dicache-", suffix=".pipe")
        try:
            with os.fdopen(handle, "wb") as file:
                pickle.dump((self.pipe, self.made), file, protocol=pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            Path(path).unlink(missing_ok=True)
            if isinstance(error, CopyError) or not isinstance(error, UNPICKLED):
                raise
            raise WorkerError(
                f"a {type(self.pipe).__name__} cannot be sent to workers: {error}. Give a function of a module that "
                "makes the pipeline in its place, calibrate(make_pipe, ...), which every worker calls once."
            ) from error
        return PipelineSource(token, intra, path=path)


def _nothing() -> Iterator[Any]:
    return iter(())
