"""So many steps computed and no more, at the least error: the dual of `Planned`, for a cost instead of a budget.

A sample's way is the best of the plan with n computed steps, where n / steps is the share of the work it was given.
Where n is not whole, a share of the samples gets one step more, so that the mean comes out: those for which

    WRAPS log(cost) mod 1  <  n mod 1

with the cost that was predicted for skipping the first step of which something is known. Its logarithm differs between
samples by some tenths, so many of which make the left side as good as drawn by lot, whatever the model, yet always the
same for a sample.

Easy and hard samples get the same. On the reference model that loses no more than steps moved from easy to hard ones at
equal mean work, and less above twice the speed: of how hard a sample is, a run tells too little in time
(bench/README.md). What a step's modules outside the blocks cost is not in the count.
"""

import math
from dataclasses import dataclass, field

import torch

from dicache.budget import Budget, per_sample
from dicache.controllers.base import Controller
from dicache.controllers.planned import TINY, Planned, Way
from dicache.plan import Plan, plan_of
from dicache.types import Action, Decision, Quote, Reason, Rows, Step

WRAPS = 30


@dataclass(frozen=True)
class Counted(Controller[Way]):
    speedup: Budget
    bounds: Planned = field(default_factory=lambda: Planned(0.0))
    """Whose bounds hold: how many steps at the end compute, and how many are skipped in a row at most."""

    def init(self, samples: int) -> Way:
        way = self.bounds.init(samples)
        return way._replace(account=way.account._replace(budget=per_sample(self.speedup, samples)))

    def decide(self, quote: Quote, step: Step, state: Way) -> tuple[Decision, Way]:
        known, due, amplitude = quote.cost.isfinite(), state.due.clone(), state.amplitude.clone()
        for b in (known & (state.before >= 0)).nonzero().flatten().tolist():
            due[b], amplitude[b] = self._due(quote, step, state, b)
        skip = known & (due > step.index)
        account = state.account._replace(pending=state.account.pending + torch.where(skip, quote.cost, 0.0))
        last = torch.where(skip, state.last, step.index)
        before = torch.where(skip, state.before, state.last)
        action = torch.where(skip, quote.action, int(Action.COMPUTE))
        reason = torch.where(known, int(Reason.PLANNED), int(Reason.UNKNOWN))
        reason = torch.where(skip, int(Reason.SCHEDULED), reason)
        return Decision(action[:, None], reason[:, None], account.spent), Way(account, last, before, due, amplitude)

    def _due(self, quote: Quote, step: Step, state: Way, b: int) -> tuple[int, float]:
        """The step that sample b computes next, and the cost by which it was dealt its number of steps. Where nobody
        knows the course, every s-th step on average computes.
        """
        i, speedup, lot = step.index, float(state.account.budget[b]), float(state.amplitude[b])
        if step.course is None:
            return (i if (i + 1) / speedup % 1 < 1 / speedup else i + 1), lot
        plan = plan_of(step.course, self.bounds.longest, self.bounds.last)
        lot = lot or max(float(quote.cost[b]), TINY)
        way = plan.way(dealt(plan, speedup, lot))
        return min(due for due in [*way, len(plan.time)] if due >= i), lot

    def missed(self, reached: Rows) -> str | None:
        """What to say where samples reached less than nine tenths of their speed-up, (B,)."""
        asked = per_sample(self.speedup, len(reached))
        if not (short := reached < 0.9 * asked).any():
            return None
        b = int(short.nonzero()[0])
        return (
            f"speedup={asked[b]:g} was asked for and {reached[b]:.2f} reached: the first steps and the last compute, "
            f"and no more than {self.bounds.longest} in a row are skipped."
        )

    def settle(self, ratio: Rows, computed: Rows, state: Way) -> Way:
        return state._replace(account=state.account.closed(ratio, computed))


def dealt(plan: Plan, speedup: float, lot: float) -> int:
    """How many steps a sample computes."""
    wanted = max(len(plan.time) / speedup, plan.fewest)
    return min(len(plan.time), math.floor(wanted) + (WRAPS * math.log(lot) % 1 < wanted % 1))
