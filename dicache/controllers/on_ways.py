"""Follow the fastest of the ways that were fitted for this course (`dicache.ways`) that loses no more than the internal
budget: the same steps for all samples of one budget. What is estimated of a sample is what its way loses.

What makes a prompt hard tells itself late (a fifth of the variance of log error after half the run, a third at its end;
reference model), and slopes that were fitted for one way hardly serve another. At equal work, ways and their slopes err
half as much as amplitudes and a plan of one's own per sample (bench/README.md).
"""

from dataclasses import dataclass

import torch

from dicache.budget import Budget
from dicache.controllers.base import Controller
from dicache.controllers.planned import Planned, Way
from dicache.types import Action, Decision, Grid, Quote, Reason, Rows, Step
from dicache.ways import Ways


@dataclass(frozen=True)
class OnWays(Controller[Way]):
    ways: Ways
    budget: Budget = 0.0

    def init(self, samples: int) -> Way:
        return Planned(self.budget).init(samples)

    def decide(self, quote: Quote, step: Step, state: Way) -> tuple[Decision, Way]:
        i, which = step.index, self.ways.fastest(state.account.budget)
        due = self.ways.computes(which, i)
        skip = ~due & quote.cost.isfinite() & (state.before >= 0)
        last, before = torch.where(skip, state.last, i), torch.where(skip, state.before, state.last)
        reason = torch.where(due, int(Reason.PLANNED), int(Reason.UNKNOWN))
        reason = torch.where(which < 0, int(Reason.NO_BUDGET), reason)
        reason = torch.where(skip, int(Reason.WITHIN_BUDGET), reason)
        action = torch.where(skip, int(Action.CORRECT), int(Action.COMPUTE))
        spent = self.ways.loses(which) * step.progress
        return Decision(action[:, None], reason[:, None], spent), state._replace(last=last, before=before)

    def slopes(self, step: Step, state: Way) -> Grid:
        return self.ways.lines(self.ways.fastest(state.account.budget), step.index, state.last, state.before)

    def settle(self, ratio: Rows, computed: Rows, state: Way) -> Way:
        return state
