"""BWCache (arXiv 2509.13789): where the last computed step changed little, reuse for a fixed stretch, and leave the end
of the run alone.

The estimate is how much a site's value changed from one computed step to the next, known once the later of them is
over, and the same until another is. Nothing is measured while a gap is open, and no probe is asked.

    e = |v_a - v_b|_1 / |v_b|_1        a, b the last two computed steps

The rule reads it when a stretch begins:

    after a computed step whose error was below the threshold      R = share * steps   are skipped
    i* the first step of the first stretch:  from i* + (1 - tail) (steps - i*) on      all compute
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dicache.controllers.base import Controller, cost_of, decided
from dicache.errors import ModeError
from dicache.estimators.base import Estimator, Evidence
from dicache.estimators.relative_change import finite, updated
from dicache.tensors.norms import relative_change_l1
from dicache.types import Decision, Grid, Quote, Reason, Rows, Step


class Change(NamedTuple):
    output: Tensor | None
    """v_a, (B, ...)."""
    change: Grid
    """(B, A); inf until it is known."""


@dataclass(frozen=True)
class ComputedChange(Estimator[Change]):
    """e."""

    def own_bytes(self, feature: int, output: int, latent: int) -> int:
        return output

    def init(self, samples: int, n_approximators: int) -> Change:
        return Change(None, torch.full((samples, n_approximators), torch.inf, dtype=torch.float64))

    def predict(self, evidence: Evidence, state: Change) -> Grid:
        return state.change.clone()

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Change) -> Change:
        output = evidence.output
        if output is None:
            return state._replace(change=state.change.masked_fill(computed[:, None], torch.inf))
        change = state.change
        if state.output is not None:
            change = finite(relative_change_l1(output, state.output), change.shape[1])
        elif bool(computed.any()):
            change = torch.full_like(change, torch.inf)
        change = torch.where(computed[:, None], change, state.change)
        return Change(updated(state.output, output, None if bool(computed.all()) else computed), change)


class Stretched(NamedTuple):
    gap: Rows
    """Steps skipped in a row so far, (B,)."""
    trigger: Rows
    """The first step that was skipped, inf before it, (B,)."""
    spent: Rows


@dataclass(frozen=True)
class Stretch(Controller[Stretched]):
    """Reads an error that stays while nothing is computed."""

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
