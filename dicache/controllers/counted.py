"""So many steps computed and no more, at the least error: the dual of `Planned`, for a cost instead of a budget.

A sample's way is the best of the plan with n computed steps, where n / steps is the share of the work it was given.
Where n is not whole, the samples that turned out harder than usual at their first observation get one step more: with
amplitudes that vary by `spread`, that is the share of them that makes the mean come out. What a step's modules outside
the blocks cost is not in the count.
"""

import math
from dataclasses import dataclass, field

import torch

from dicache.budget import Budget, per_sample
from dicache.controllers.base import Controller
from dicache.controllers.planned import TINY, Planned, Way
from dicache.plan import Plan, plan_of
from dicache.types import Action, Decision, Quote, Reason, Rows, Step


@dataclass(frozen=True)
class Counted(Controller[Way]):
    speedup: Budget
    spread: float = 0.35
    """Standard deviation of log amplitude over samples."""
    inner: Planned = field(default_factory=lambda: Planned(0.0))
    """Its bounds hold."""

    def init(self, samples: int) -> Way:
        way = self.inner.init(samples)
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
        """The step that sample b computes next, and its amplitude when it was first seen. Where nobody knows the
        course, every s-th step on average computes.
        """
        i, speedup, amplitude = step.index, float(state.account.budget[b]), float(state.amplitude[b])
        if step.course is None:
            return (i if (i + 1) / speedup % 1 < 1 / speedup else i + 1), amplitude
        plan = plan_of(step.course, self.inner.longest, self.inner.last)
        if amplitude == 0:
            amplitude = float(quote.cost[b]) / max(plan.usual(int(state.last[b]), int(state.before[b])), TINY)
        way = plan.way(self._count(plan, speedup, amplitude))
        return min(due for due in [*way, len(plan.time)] if due >= i), amplitude

    def _count(self, plan: Plan, speedup: float, amplitude: float) -> int:
        """How many steps this sample computes."""
        wanted = max(len(plan.time) / speedup, plan.fewest)
        harder = 0.5 * math.erfc(math.log(max(amplitude, TINY)) / self.spread / math.sqrt(2))
        return min(len(plan.time), math.floor(wanted) + (harder < wanted % 1))

    def settle(self, ratio: Rows, computed: Rows, state: Way) -> Way:
        return state._replace(account=state.account.closed(ratio, computed))
