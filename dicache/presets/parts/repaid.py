"""Every n-th step computes, and where the predicted error is too large a step out of turn, which is paid back by
skipping a later scheduled one (RACER, arXiv 2608.01740): the work stays that of the schedule and goes where it is
needed.

    due, e >= threshold              compute              not due, e >= threshold       compute, owe one more
    due, e < threshold, one owed     skip, owe one less   not due, e < threshold        skip

A step whose error is not known computes and is not owed.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dicache.controllers.base import Controller, cost_of, decided
from dicache.errors import ModeError
from dicache.types import Decision, Quote, Reason, Rows, Step


class Debt(NamedTuple):
    passed: Rows
    """Steps so far, (B,)."""
    owed: Rows
    spent: Rows


@dataclass(frozen=True)
class Repaid(Controller[Debt]):
    threshold: float
    interval: int = 5
    first: int = 1
    """Steps that compute at the start."""

    def __post_init__(self) -> None:
        if self.interval < 1 or self.first < 1:
            raise ModeError(f"{self}: expected an interval and a first of 1 or more.")

    def init(self, samples: int) -> Debt:
        none = torch.zeros(samples, dtype=torch.int64)
        return Debt(none, none.clone(), torch.zeros(samples, dtype=torch.float64))

    def decide(self, quote: Quote, step: Step, state: Debt) -> tuple[Decision, Debt]:
        warm, risky = state.passed < self.first, ~(quote.error < self.threshold)
        due = (state.passed - self.first + 1) % self.interval == 0
        skip = ~warm & ~risky & (~due | (state.owed > 0))
        early = ~warm & ~due & risky & quote.error.isfinite()
        owed = state.owed + early.long() - (skip & due).long()
        spent = state.spent + cost_of(quote, skip)
        over = (quote.error.isfinite(), Reason.OVER_BUDGET)
        decision = decided(quote, skip, spent, over, (due, Reason.SCHEDULED), (warm, Reason.WARM_UP))
        return decision, Debt(state.passed + 1, owed, spent)
