"""Now and then a skip is computed after all, at random, so that the loop sees what skipping would have been wrong by:
an unbiased look at errors that a rule otherwise learns of only at the ends of its gaps.

The draw is one per step, the same for all samples and sites, from a generator that is seeded with the seed, the run's
length and the step's index (as text: torch's own takes 32 bits of a seed): batch mates cannot change it, and a second
run draws the same. The inner controller is asked
what it would do, and, where that is audited, asked again with an infinite error: it knows that the step was computed.
"""

import random
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch

from dicache.controllers.base import Controller, refused
from dicache.errors import ModeError
from dicache.planning.budget import Budget
from dicache.types import Action, Decision, Quote, Reason, Rows, Site, Step

S = TypeVar("S")


@dataclass(frozen=True)
class Audited(Controller[S], Generic[S]):
    inner: Controller[S]
    share: float = 0.05
    """Of the steps that would be skipped."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ModeError(f"Audited(share={self.share}): expected a share from 0 to 1.")

    def at(self, site: Site, sites: int) -> "Audited[Any]":
        return replace(self, inner=self.inner.at(site, sites))

    @property
    def error_budget(self) -> Budget | None:
        return self.inner.error_budget

    def init(self, samples: int) -> S:
        return self.inner.init(samples)

    def drawn(self, step: Step) -> bool:
        """Whether this step is audited where it is skipped."""
        return random.Random(f"{self.seed} {step.total} {step.index}").random() < self.share

    def decide(self, quote: Quote, step: Step, state: S) -> tuple[Decision, S]:
        decision, after = self.inner.decide(quote, step, state)
        audited = decision.action[:, 0] != Action.COMPUTE
        if not self.drawn(step) or not bool(audited.any()):
            return decision, after
        decision, after = self.inner.decide(refused(quote, audited), step, state)
        reason = torch.where(audited[:, None], int(Reason.AUDIT), decision.reason)
        return decision._replace(reason=reason), after

    def settle(self, ratio: Rows, computed: Rows, state: S) -> S:
        return self.inner.settle(ratio, computed, state)
