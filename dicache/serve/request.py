"""What is asked of an engine, and what came of it."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor

from dicache.errors import DicacheError
from dicache.hosts.audit import Audited
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

    def __init__(
        self, call: Mapping[str, Any], asked: Mapping[str, Any], withdraw: Callable[["Request"], None] | None = None
    ) -> None:
        """`withdraw` is told where it is cancelled."""
        self.withdraw = withdraw
        self.id, self.call, self.asked = uuid4().hex, dict(call), dict(asked)
        self.future: Future[Served] = Future()
        self.future.set_running_or_notify_cancel()  # who waits for it cannot end it but by `cancel`
        self.cancelled, self.loops = False, False
        self.slot: Slot | None = None
        self.loop: Loop = Loop()
        self.note: str = ""
        """What its report must say."""
        self.again: dict[str, Any] | None = None
        """The same call once more, where it is to be audited."""
        self.latent: Tensor | None = None
        """The final one, where it is."""
        self.submitted, self.waited = time.monotonic(), 0.0

    def loosen(self, largest: float, waiting: int, slots: int) -> bool:
        """Its budget grows with the queue, where that may be: whether it did."""
        budget = self.asked.get("error_budget")
        if not isinstance(budget, int | float) or self.asked.get("confidence") is not None:
            return False
        grown = min(largest, budget * (1 + waiting / slots))
        if grown <= budget:
            return False
        self.note = f"{waiting} requests waited, so its error budget is {grown:.4g} where {budget:.4g} was asked for."
        self.asked = {**self.asked, "error_budget": grown}
        return True

    def result(self, timeout: float | None = None) -> Served:
        """Raises CancelledError, TimeoutError, or what the pipeline raised."""
        return self.future.result(timeout)

    def cancel(self) -> None:
        """It ends at once where it waits, else before its next denoiser call; where it is done nothing happens."""
        self.cancelled = True
        if self.withdraw is not None:
            self.withdraw(self)


class Totals:
    """What an engine has done so far, for those who watch it."""

    executed: float
    uncached: float

    def __init__(self) -> None:
        self.served = self.failed = self.cancelled = self.refused = self.loosened = 0
        """`refused` for want of room; `loosened`: whose budget grew with the queue."""
        self.audits: dict[str, int] = dict.fromkeys(("within", "passed", "none"), 0)
        """By whether the true error was within the budget; `none` where there was no budget."""
        self.steps = self.calls = 0
        """Steps of the conductor, and the calls of requests that were made in them."""
        self.executed = self.uncached = 0.0
        """MACs of the denoiser, without audits."""
        self.seconds: deque[float] = deque(maxlen=1000)
        """Of the last requests, from begun to done."""


def budget_kept(audited: Audited) -> str:
    """ "within" or "passed" its budget; "none" where it had none."""
    if audited.budget is None:
        return "none"
    return "within" if audited.error <= audited.budget else "passed"


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
