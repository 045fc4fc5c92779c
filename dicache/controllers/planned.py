"""Plan the rest of the run at every computed step, and follow the plan until the next one.

Skipping the g steps after the computed step i costs s E(i, g), the sum over those steps q of how much each adds to the
final latent,

    E(i, g) = sum_q |h_q| k_q |tau_q (tau_q + D)|        (`dicache.planning.error_law`)

with one amplitude s per sample, read off what the estimator quotes for the next step: in the law's own time errors grow
alike everywhere, so that every gap to come has a price. The errors of different gaps add in squares. Those made in
noise fade, so which way is best is asked of F(i, g), which is E with every term times what survives of it
(`dicache.planning.error_law`). Dynamic programming over the timetable gives

    V(i, n) = min_g  F(i, g)^2 + V(i + 1 + g, n - 1)

of the best way that begins at the computed step i and computes n steps. How many steps it must be is asked of E: a
sample takes the way with the fewest computed steps whose E^2 together are within what is left of its budget, and then
the gap that this way begins with. Only the amplitude is learned, only the next gap is fixed. (With F for both, a sample
plans long gaps early and pays for them later; with E for both it errs a tenth more at equal work.)

F is by what models have in common: prices to the power of 0.6, discounted less without guidance, and with no line drawn
further than a few times as far as its anchors lie apart (`dicache.planning.law_plan`); E is by all that the law says,
since the amplitude is read against it. Rule 2, of earlier profiles, had the whole law in F too, one discount, no bound
on how far a line reaches, and looked up the next gap as if the anchors before it lay as far apart as it is long.

What is left is the budget less what the gaps so far turned out to cost, but never less than the share that belongs to
the rest of the run: a sample that was unlucky early goes on at its pace instead of computing everything. In a
hand-written loop nobody knows the timetable; there the rule is that of `Budgeted`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from dicache.controllers.base import Account, Controller, decided
from dicache.controllers.budgeted import Budgeted
from dicache.planning.budget import Budget, per_sample, scaled, shared
from dicache.planning.error_law import DECAY, MARGIN, RULE, TRUST, way_decay
from dicache.planning.law_plan import Plan, plan_of
from dicache.types import Decision, Quote, Reason, Rows, Site, Step, Timetable

TINY = 1e-12
ONE_GAP = 0.4
"""Share of the budget that one gap may spend where nobody knows the rest of the run: else early gaps take it all."""


class Way(NamedTuple):
    account: Account
    last: Rows
    """The last computed step and the one before it, -1 for none, (B,) int64."""
    before: Rows
    due: Rows
    """The step that is computed next."""
    amplitude: Rows
    """s of the gap that is open, (B,)."""


@dataclass(frozen=True)
class Planned(Controller[Way]):
    budget: Budget
    last: int = 1
    """Steps that compute at the end: the output turns fastest there."""
    longest: int = 8
    """Most steps skipped in a row."""
    decay: float | None = None
    """Power of the signal's share with which errors count where ways are compared; 0: all alike. None: that of the
    rule, by the run's guidance.
    """
    rule: int = RULE
    """By which a profile was tested (`dicache.planning.error_law`)."""

    def at(self, site: Site, sites: int) -> "Planned":
        return replace(self, budget=shared(self.budget, sites))

    @property
    def error_budget(self) -> Budget | None:
        return self.budget

    def fewest(self, steps: int) -> int:
        """Two to extrapolate from, the last ones, and one after every gap that is as long as may be."""
        fixed = 2 + self.last
        return min(steps, fixed + max(0, -(-(steps - fixed - self.longest) // (self.longest + 1))))

    def init(self, samples: int) -> Way:
        zero, none = torch.zeros(samples, dtype=torch.float64), torch.full((samples,), -1)
        account = Account(per_sample(self.budget, samples), zero, zero.clone())
        return Way(account, none, none.clone(), none.clone(), zero.clone())

    def decide(self, quote: Quote, step: Step, state: Way) -> tuple[Decision, Way]:
        if step.timetable is None:
            decision, account = Budgeted(self.budget, ONE_GAP).decide(quote, step, state.account)
            return decision, state._replace(account=account)
        plan = self._plan(step.timetable, quote.facts.guidance)
        finite, broke, i = quote.cost.isfinite(), state.account.budget == 0, step.index
        due, amplitude, price, over = self._planned(plan, quote.cost, finite & ~broke, step, state)
        skip = (due > i) & finite & ~broke
        account = state.account._replace(pending=state.account.pending + torch.where(skip, price, 0.0))
        last, before = torch.where(skip, state.last, i), torch.where(skip, state.before, state.last)
        reasons = (finite, Reason.PLANNED), (over, Reason.OVER_BUDGET), (broke, Reason.NO_BUDGET)
        return decided(quote, skip, account.spent, *reasons), Way(account, last, before, due, amplitude)

    def _planned(self, plan: Plan, cost: Rows, rows: Rows, step: Step, state: Way) -> tuple[Rows, Rows, Rows, Rows]:
        """For the `rows` whose error is known: the next computed steps, the amplitudes, what skipping this step would
        add, and whether that alone is too much, (B,) each.
        """
        i = step.index
        due, amplitude, price = state.due.clone(), state.amplitude.clone(), torch.zeros_like(cost)
        over = torch.zeros_like(rows)
        for b in (rows & (state.before >= 0)).nonzero().flatten().tolist():
            last, before = int(state.last[b]), int(state.before[b])
            if last == i - 1:
                amplitude[b] = cost[b] / max(plan.usual(last, before), TINY)
                left = self._left(state.account, step, b)
                gap = plan.gap if self.rule == 2 else plan.gap_within
                due[b] = i + gap(i, before, left / max(float(amplitude[b]), TINY) ** 2)
                over[b] = cost[b] > left**0.5
            price[b] = amplitude[b] * plan.prices(last, before, i - last)[-1]
        return due, amplitude, price, over

    def _plan(self, timetable: Timetable, guidance: float | None) -> Plan:
        decay = self.decay
        if decay is None:
            decay = DECAY if self.rule == 2 else way_decay(guidance)
        if timetable.random:
            decay = 0.0  # noise covers errors, and its prices know
        return plan_of(timetable, self.longest, self.last, decay, 1.0 if self.rule == 2 else TRUST)

    def _left(self, account: Account, step: Step, b: int) -> float:
        """Of the squared budget."""
        budget = float(account.budget[b]) ** 2
        left = budget - float(account.settled[b])
        if step.timetable is not None and step.timetable.random:
            return max(left, 0.0)
        return max(left, budget * (1 - step.progress))

    def settle(self, ratio: Rows, computed: Rows, state: Way) -> Way:
        return state._replace(account=state.account.closed(ratio, computed))


def cautious(budget: Budget, rule: int = RULE) -> Planned:
    """For a budget that no profile says how to keep."""
    return Planned(scaled(budget, 1 / MARGIN), rule=rule)
