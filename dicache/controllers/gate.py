"""A rule that ends at a gate, a share of the run's steps (T-GATE, arXiv 2404.02747): from there on its sites rest, or
compute.

    step < ceil(gate * steps)      as the inner rule says        from there on: rest where `closes`, else compute

Steps count from the first one of the run: image-to-image starts half-way.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from dicache.controllers.base import Around, ProfileUse, cost_of, decided, overruled, refused
from dicache.errors import ModeError
from dicache.types import Decision, Quote, Reason, Rows, Step


class Passed(NamedTuple):
    inner: Any
    """State of the inner rule."""
    spent: Rows
    """By what rests from the gate on, (B,)."""
    begin: int
    """Index of the run's first step, -1 before it."""


@dataclass(frozen=True)
class Gate(Around):
    gate: float = 0.4
    """Share of the run's steps that lie before it."""
    closes: bool = True
    """Whether its sites rest from there on; an unknown error computes even so."""

    def __post_init__(self) -> None:
        if not 0 < self.gate <= 1:
            raise ModeError(f"{self}: expected a gate above 0 and up to 1, a share of the steps.")

    def describe(self, state: Passed) -> ProfileUse | None:
        return self.inner.describe(state.inner)

    def init(self, samples: int) -> Passed:
        return Passed(self.inner.init(samples), torch.zeros(samples, dtype=torch.float64), -1)

    def decide(self, quote: Quote, step: Step, state: Passed) -> tuple[Decision, Passed]:
        begin = step.index if state.begin < 0 else state.begin
        if step.index - begin < math.ceil(self.gate * (step.total - begin)):
            decision, inner = self.inner.decide(quote, step, state.inner)
            return decision, Passed(inner, decision.spent, begin)
        if self.closes:
            skip = quote.error.isfinite()
            spent = state.spent + cost_of(quote, skip)
            return decided(quote, skip, spent, skipped=Reason.SCHEDULED), Passed(state.inner, spent, begin)
        everything = torch.ones_like(quote.error, dtype=torch.bool)
        decision, inner = self.inner.decide(refused(quote, everything), step, state.inner)
        return overruled(decision, everything, Reason.SCHEDULED), Passed(inner, decision.spent, begin)

    def settle(self, ratio: Rows, computed: Rows, state: Passed) -> Passed:
        return state._replace(inner=self.inner.settle(ratio, computed, state.inner))
