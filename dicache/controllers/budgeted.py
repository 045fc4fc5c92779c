"""Skip while the error estimated so far stays within what the budget has released so far.

    skip at step i   if and only if   sqrt(settled + (pending + cost_i)^2)  <=  budget * sqrt(progress_i)

Errors within one gap point the same way and add; those of different gaps have been told apart by an exact step and add
like independent ones, in squares. (Adding all of them, the triangle bound, overestimated the final error four times on
the reference model.) The budget is released so that its square grows with the way travelled: early steps cannot spend
all of it. What a gap spends stays pending until the next computed step tells what it really was: the errors inside one
gap share one constant, so all of it is scaled by realised over predicted error.
"""

from dataclasses import dataclass, replace

import torch

from dicache.controllers.base import Account, Controller, decided
from dicache.planning.budget import Budget, per_sample, shared
from dicache.types import Decision, Quote, Reason, Rows, Site, Step


@dataclass(frozen=True)
class Budgeted(Controller[Account]):
    budget: Budget
    one_gap: float = 1.0
    """Share of the budget that one gap may spend at most."""

    def at(self, site: Site, sites: int) -> "Budgeted":
        return replace(self, budget=shared(self.budget, sites))

    @property
    def error_budget(self) -> Budget | None:
        return self.budget

    def init(self, samples: int) -> Account:
        zero = torch.zeros(samples, dtype=torch.float64)
        return Account(per_sample(self.budget, samples), zero, zero.clone())

    def decide(self, quote: Quote, step: Step, state: Account) -> tuple[Decision, Account]:
        after = state._replace(pending=state.pending + quote.cost)
        released = after.spent <= state.budget * step.progress**0.5
        skip = released & (after.pending <= state.budget * self.one_gap) & (state.budget > 0)
        state = state._replace(pending=torch.where(skip, after.pending, state.pending))
        over = (quote.cost.isfinite(), Reason.OVER_BUDGET)
        return decided(quote, skip, state.spent, over, (state.budget == 0, Reason.NO_BUDGET)), state

    def settle(self, ratio: Rows, computed: Rows, state: Account) -> Account:
        return state.closed(ratio, computed)
