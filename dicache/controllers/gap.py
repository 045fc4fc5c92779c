"""Skip while what the open gap is estimated to add to the final latent stays within a limit:

    skip at step i   if and only if   sum of the costs of the steps since the last computed one, i included  <=  limit

Gaps are told apart by computed steps, and each has the whole limit: nothing is added up over the run (`Budgeted` does).
"""

from dataclasses import dataclass

import torch

from dicache.controllers.base import Controller, decided
from dicache.types import Decision, Quote, Reason, Rows, Step


@dataclass(frozen=True)
class PerGap(Controller[Rows]):
    limit: float
    """Relative error of the final latent."""

    def init(self, samples: int) -> Rows:
        return torch.zeros(samples, dtype=torch.float64)

    def decide(self, quote: Quote, step: Step, state: Rows) -> tuple[Decision, Rows]:
        pending = state + quote.cost
        skip = pending <= self.limit
        over = (quote.cost.isfinite(), Reason.OVER_BUDGET)
        return decided(quote, skip, pending.nan_to_num(0.0, 0.0), over), pending

    def settle(self, ratio: Rows, computed: Rows, state: Rows) -> Rows:
        """What was really done counts, whoever decided it."""
        return torch.where(computed, 0.0, state)
