"""The one thread that calls the denoiser: it waits until requests have handed in what they would call it with, and
makes these calls together.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from dicache.errors import BusyError
from dicache.serve.request import CancelledError, Request, Totals
from dicache.slots.slots import Slots

SHARE, LEAST = 0.25, 0.005
"""How long it waits for others: this share of the last step, and seconds at least."""


class Precision(NamedTuple):
    """In which precision a request's thread is about to compute: autocast is a thread's own."""

    autocast: tuple[tuple[str, torch.dtype], ...]
    """Devices on which it is on, and to what."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        if not self.autocast:
            yield
            return
        (device, dtype), *further = self.autocast
        with torch.autocast(device, dtype), Precision(tuple(further)).entered():
            yield


def precision() -> Precision:
    """Of this thread."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return Precision(tuple((d, torch.get_autocast_dtype(d)) for d in devices if torch.is_autocast_enabled(d)))


class Waiting(NamedTuple):
    """A denoiser call that was handed in."""

    request: Request
    inputs: Mapping[str, Any]
    branch: str | None
    precision: Precision
    output: "Future[Any]"


class Conductor:
    """`changed` tells of all that requests do, `baton` is held by the one that runs outside of the denoiser, `running`
    are those that run, and `is_over` tells whether there will be no more.
    """

    slots: Slots
    running: Mapping[str, Request]
    counts: Totals
    is_over: Callable[[], bool]
    group: int | None
    last: float
    ended: bool
    changed: threading.Condition
    baton: threading.Lock

    def __init__(
        self,
        slots: Slots,
        changed: threading.Condition,
        baton: threading.Lock,
        running: Mapping[str, Request],
        counts: Totals,
        is_over: Callable[[], bool],
        group: int | None,
    ) -> None:
        self.slots, self.changed, self.baton, self.running = slots, changed, baton, running
        self.counts, self.is_over, self.group = counts, is_over, group
        self.waiting: list[Waiting] = []
        self.last, self.ended = LEAST, False

    def met(self, request: Request, inputs: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """What the denoiser gives, when the conductor has made the call. Others run meanwhile."""
        waiting = Waiting(request, inputs, self.slots.branch, precision(), Future())
        with self.changed:
            if self.ended:
                raise BusyError("the engine has ended: nobody calls the denoiser any more.")
            request.loops = True
            self.waiting.append(waiting)
            self.changed.notify_all()
        self.baton.release()
        try:
            output = waiting.output.result()
        finally:
            self.baton.acquire()
        return output

    def conduct(self) -> None:
        """Until all is over. Nobody waits for it after that."""
        meeting: list[Waiting] | None = []
        try:
            with torch.no_grad():
                while (meeting := self._meeting()) is not None:
                    started = time.monotonic()
                    self._step(meeting)
                    self.last = time.monotonic() - started
        finally:
            with self.changed:
                self.ended = True
                for waiting in [*(meeting or []), *self.waiting]:
                    if not waiting.output.done():
                        waiting.output.set_exception(BusyError("the engine has ended."))

    def _meeting(self) -> list[Waiting] | None:
        """What has been handed in, once all that are about to call have called or waiting for them takes too long; None
        where nothing will be.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.is_over())
            patience = time.monotonic() + max(LEAST, SHARE * self.last)
            while 0 < len(self.waiting) < sum(request.loops for request in self.running.values()):
                if not self.changed.wait(patience - time.monotonic()) and time.monotonic() >= patience:
                    break
            meeting, self.waiting = self.waiting, []
        return meeting or None

    def _step(self, meeting: list[Waiting]) -> None:
        for waiting in [waiting for waiting in meeting if waiting.request.cancelled]:
            meeting.remove(waiting)
            waiting.output.set_exception(CancelledError("the request was cancelled."))
        if not meeting:
            return
        outputs: dict[int, Any] = {}
        for kind in dict.fromkeys(waiting.precision for waiting in meeting):
            some = [i for i, waiting in enumerate(meeting) if waiting.precision == kind]
            outputs.update(zip(some, self._outputs(kind, [meeting[i] for i in some]), strict=True))
        self.counts.steps, self.counts.calls = self.counts.steps + 1, self.counts.calls + len(meeting)
        for i, waiting in enumerate(meeting):
            waiting.request.loops = waiting.request.slot is not None and not waiting.request.slot.done
            output = outputs[i]
            if isinstance(output, BaseException):
                waiting.output.set_exception(output)
            else:
                waiting.output.set_result(output)

    def _outputs(self, kind: Precision, meeting: Sequence[Waiting]) -> list[Any]:
        slots = [waiting.request.slot for waiting in meeting if waiting.request.slot is not None]
        inputs, branches = [waiting.inputs for waiting in meeting], [waiting.branch for waiting in meeting]
        try:
            with kind.entered():
                return self.slots.step(slots, inputs, branches, return_exceptions=True, group=self.group)
        except BaseException as error:
            return [error] * len(meeting)
