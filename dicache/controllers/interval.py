"""Compute every n-th step, counted while the run goes: no step count is needed, and a row that had to compute out of
turn counts from there (`dicache.controllers.fixed` holds schedules that are known before).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dicache.controllers.base import Controller, cost_of, decided
from dicache.errors import ModeError
from dicache.types import Decision, Quote, Reason, Rows, Step


class Count(NamedTuple):
    left: Rows
    """Steps of the warm-up to come, (B,)."""
    since: Rows
    """Steps since the last computed one, (B,)."""
    spent: Rows


@dataclass(frozen=True)
class Interval(Controller[Count]):
    interval: int
    """Steps from one computed step to the next: 1 computes all. Unknown errors compute anyway."""
    first: int = 1
    """Steps that compute at the start."""

    def __post_init__(self) -> None:
        if self.interval < 1 or self.first < 1:
            raise ModeError(f"Interval({self.interval}, first={self.first}): expected 1 or more of both.")

    @property
    def reads_error(self) -> bool:
        return False

    def init(self, samples: int) -> Count:
        zero = torch.zeros(samples, dtype=torch.float64)
        return Count(zero + self.first, zero, zero.clone())

    def decide(self, quote: Quote, step: Step, state: Count) -> tuple[Decision, Count]:
        warm, due = state.left > 0, state.since + 1 >= self.interval
        skip = ~warm & ~due & quote.error.isfinite()
        spent = state.spent + cost_of(quote, skip)
        after = Count((state.left - 1).clamp(min=0), torch.where(skip, state.since + 1, 0), spent)
        reasons = (due, Reason.SCHEDULED), (warm, Reason.WARM_UP)
        return decided(quote, skip, spent, *reasons, skipped=Reason.SCHEDULED), after
