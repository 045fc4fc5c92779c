"""Skip while the error estimated so far stays within what the budget has released so far.

    skip at step i   if and only if   spent + pending + cost_i  <=  budget * progress_i

The budget is released in proportion to the way travelled, so that early steps cannot spend all of it. What a gap spends stays pending until the next computed step tells what it really
was: the errors inside one gap share one constant, so all of it is scaled by the ratio of realised to predicted error.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from dicache.budget import Budget, per_sample
from dicache.controllers.base import Controller
from dicache.types import Action, Decision, Reason, Rows, Step


class Account(NamedTuple):
    budget: Rows
    spent: Rows
    pending: Rows
    """All (B,) float64, in units of the final relative error."""


@dataclass(frozen=True)
class Budgeted(Controller[Account]):
    budget: Budget

    def init(self, samples: int) -> Account:
        zero = torch.zeros(samples, dtype=torch.float64)
        return Account(per_sample(self.budget, samples), zero, zero.clone())

    def decide(self, cost: Rows, action: Rows, step: Step, state: Account) -> tuple[Decision, Account]:
        total = state.spent + state.pending
        skip = (total + cost <= state.budget * step.progress) & (state.budget > 0)
        reason = torch.where(cost.isfinite(), int(Reason.OVER_BUDGET), int(Reason.UNKNOWN))
        reason = torch.where(state.budget > 0, reason, int(Reason.NO_BUDGET))
        reason = torch.where(skip, int(Reason.WITHIN_BUDGET), reason)
        state = state._replace(pending=state.pending + torch.where(skip, cost, 0.0))
        action = torch.where(skip, action, int(Action.COMPUTE))
        return Decision(action[:, None], reason[:, None], state.spent + state.pending), state

    def settle(self, ratio: Rows, computed: Rows, state: Account) -> Account:
        real = state.pending * torch.where(ratio.isfinite(), ratio, 1.0)
        return Account(state.budget, torch.where(computed, state.spent + real, state.spent), torch.where(computed, 0.0, state.pending))
