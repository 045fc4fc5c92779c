"""Where the last computed step changed little, reuse for a fixed stretch, and leave the end of the run alone (BWCache,
arXiv 2509.13789).

    after a computed step whose error was below the threshold      R = share * steps   are skipped
    i* the first step of the first stretch:  from i* + (1 - tail) (steps - i*) on      all compute

The error is read when a stretch begins, and must be one that stays while nothing is computed
(`dicache.presets.parts.computed_change`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dicache.controllers.base import Controller, cost_of, decided
from dicache.errors import ModeError
from dicache.types import Decision, Quote, Reason, Rows, Step


class Stretched(NamedTuple):
    gap: Rows
    """Steps skipped in a row so far, (B,)."""
    trigger: Rows
    """The first step that was skipped, inf before it, (B,)."""
    spent: Rows


@dataclass(frozen=True)
class Stretch(Controller[Stretched]):
    threshold: float = 0.15
    share: float = 0.1
    tail: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not 0 <= self.tail <= 1:
            raise ModeError(f"{self}: expected a share above 0 and up to 1, and a tail from 0 to 1.")

    def init(self, samples: int) -> Stretched:
        zero = torch.zeros(samples, dtype=torch.float64)
        return Stretched(zero, torch.full_like(zero, torch.inf), zero.clone())

    def decide(self, quote: Quote, step: Step, state: Stretched) -> tuple[Decision, Stretched]:
        small = quote.error < self.threshold
        trigger = torch.where(small, state.trigger.clamp(max=step.index), state.trigger)
        over = step.index >= trigger + (1 - self.tail) * (step.total - trigger)
        full = state.gap >= max(1, round(self.share * step.total))
        skip = small & ~full & ~over
        spent = state.spent + cost_of(quote, skip)
        changed = (quote.error.isfinite(), Reason.OVER_BUDGET)
        decision = decided(quote, skip, spent, changed, (full, Reason.TOO_LONG), (small & over, Reason.WARM_UP))
        return decision, Stretched(torch.where(skip, state.gap + 1, 0.0), trigger, spent)
