"""What is asked of an engine, and what came of it."""

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor

from dicache.errors import DicacheError
from dicache.reporting.report import Report
from dicache.slots.slot import Slot
from dicache.solvers.clock import Loop


class CancelledError(DicacheError):
    """The request was cancelled."""


class Served(NamedTuple):
    """What a request got."""

    output: Any
    """What the pipeline returned."""
    report: Report
    waited: float
    """Seconds in the queue."""
    seconds: float
    """From when it was submitted until it was done."""


class Request:
    """One that was submitted. `result` waits for it, and raises what it raised."""

    id: str
    call: dict[str, Any]
    asked: dict[str, Any]
    cancelled: bool
    loops: bool
    submitted: float
    waited: float

    def __init__(self, call: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        self.id, self.call, self.asked = uuid4().hex, dict(call), dict(asked)
        self.future: Future[Served] = Future()
        self.future.set_running_or_notify_cancel()  # who waits for it cannot end it but by `cancel`
        self.cancelled, self.loops = False, False
        self.slot: Slot | None = None
        self.loop: Loop = Loop()
        self.note = ""
        """What its report must say."""
        self.again: dict[str, Any] | None = None
        """The same call once more, where it is to be audited."""
        self.latent: Tensor | None = None
        """The final one, where it is."""
        self.submitted, self.waited = time.monotonic(), 0.0

    def result(self, timeout: float | None = None) -> Served:
        """Raises CancelledError, TimeoutError, or what the pipeline raised."""
        return self.future.result(timeout)

    def cancel(self) -> None:
        """It ends before its next denoiser call; where it is done already nothing happens."""
        self.cancelled = True


class Totals:
    """What an engine has done so far, for those who watch it."""

    executed: float
    uncached: float

    def __init__(self) -> None:
        self.served = self.failed = self.cancelled = self.refused = 0
        self.steps = self.calls = 0
        """Steps of the conductor, and the calls of requests that were made in them."""
        self.executed = self.uncached = 0.0
        """MACs of the denoiser, without audits."""
        self.seconds: deque[float] = deque(maxlen=1000)
        """Of the last requests, from submitted to done."""


def again(call: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same call with generators in the states that its own are in; None where it has none, and draws other noise
    each time.
    """
    if call.get("generator") is None:
        return None
    several = isinstance(call["generator"], list)
    generators = call["generator"] if several else [call["generator"]]
    copies = [torch.Generator(each.device).set_state(each.get_state()) for each in generators]
    return {**call, "generator": copies if several else copies[0]}
