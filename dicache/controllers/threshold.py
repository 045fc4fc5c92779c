"""Skip while the predicted error of the step stays below a threshold: the rule of nearly every published method. What
the number means depends on the method, the model and the step count; nothing is added up here (`Accumulated` does, as
an estimator).
"""

from dataclasses import dataclass

import torch

from dicache.controllers.base import Controller, FinishedRun, cost_of, decided
from dicache.types import Decision, Quote, Reason, Rows, Step


@dataclass(frozen=True)
class Threshold(Controller[Rows]):
    threshold: float
    early: float | None = None
    """Another threshold for the first `share` of the steps (SenCache)."""
    share: float = 0.2

    def init(self, samples: int) -> Rows:
        return torch.zeros(samples, dtype=torch.float64)

    def decide(self, quote: Quote, step: Step, state: Rows) -> tuple[Decision, Rows]:
        early = self.early is not None and step.index < round(self.share * step.total)
        skip = quote.error < (self.early if early and self.early is not None else self.threshold)
        spent = state + cost_of(quote, skip)
        return decided(quote, skip, spent, (quote.error.isfinite(), Reason.OVER_THRESHOLD)), spent

    def notes(self, run: FinishedRun) -> list[str]:
        """Of a run in which nothing was skipped."""
        if bool((run.work < 1).any()):
            return []
        return [
            f"nothing was skipped at threshold={self.threshold:g}, which is in the method's own unit: with fewer steps "
            "each changes more, and it must be larger."
        ]
