"""So many steps computed and no more, at the least error: the dual of `Planned`, for a cost instead of a budget.

A sample's way is the best of the plan with n computed steps, from the first step on that is seen (image-to-image begins
half-way), where n over the steps from there is the share of the work it was given. What the law says of single steps
counts with a power of TRUST, since models differ in it more than in anything else: a way half-way between the law's and
an even one is never far from the best. The first step is held over steps that are nearly where it is, and no gap is
more than a few times as long as the one before it (`dicache.planning.law_plan`). Where n is not whole, a share of the
samples gets one step more once something is known of their errors, so that the mean comes out: those for which

    TURNS log(cost) mod 1  <  n mod 1

with the cost that was predicted for skipping the first step of which something is known. Between samples its logarithm
differs by a few tenths. Times TURNS that is some turns, so the left side is as good as drawn by lot, on any model, and
yet the same for a prompt and its seed but for rounding.

Easy and hard samples get the same number: at equal mean work that errs less than budgets per sample, but for 20 steps
below half the work (bench/README.md). What a step's modules outside the blocks cost is not in the count. In a
hand-written loop nobody knows the timetable; there a step computes where the share of computed ones would else fall
short.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch

from dicache.controllers.base import Account, Controller, FinishedRun, cost_of, decided
from dicache.controllers.planned import TINY, Planned
from dicache.errors import ModeError
from dicache.planning.budget import Budget, per_sample
from dicache.planning.error_law import TRUST, way_decay
from dicache.planning.law_plan import Plan, plan_of
from dicache.types import Decision, Quote, Reason, Rows, Step

TURNS = 10


class Counts(NamedTuple):
    account: Account
    """Its budget is the speed-up."""
    first: Rows
    """The first step, (B,) int64 as what follows; -1 before it."""
    last: Rows
    """The last computed step and the one before it, -1 for none."""
    before: Rows
    computed: Rows
    """How many steps."""
    due: Rows
    """The step that is computed next."""
    lot: Rows
    """The cost by which the number of steps is dealt, (B,) float64; 0 before it is known."""


@dataclass(frozen=True)
class Counted(Controller[Counts]):
    asked_as: ClassVar[str] = "speedup"
    """The argument of `enable` that it comes from."""
    speedup: Budget
    bounds: Planned = field(default_factory=lambda: Planned(0.0))
    """Whose bounds hold: how many steps are skipped in a row at most and, on a known timetable, how many at its end
    compute.
    """

    def init(self, samples: int) -> Counts:
        zero, none = torch.zeros(samples, dtype=torch.float64), torch.full((samples,), -1)
        account = Account(per_sample(self.speedup, samples, self.asked_as), zero, zero.clone())
        return Counts(account, none, none.clone(), none.clone(), torch.zeros_like(none), none.clone(), zero.clone())

    def decide(self, quote: Quote, step: Step, state: Counts) -> tuple[Decision, Counts]:
        i, finite = step.index, quote.cost.isfinite()
        first = torch.where(state.first < 0, i, state.first)
        lot = torch.where(finite & (state.lot == 0), quote.cost.clamp(min=TINY), state.lot)
        state, due = state._replace(first=first, lot=lot), state.due.clone()
        fills = finite & (state.before >= 0) if quote.fills is None or step.timetable is None else quote.fills
        decay = way_decay(quote.facts.guidance)
        for b in (fills & (state.last >= 0)).nonzero().flatten().tolist():
            due[b] = self._due(step, state, b, decay)
        skip = fills & (due > i)
        account = state.account._replace(pending=state.account.pending + cost_of(quote, skip))
        last, before = torch.where(skip, state.last, i), torch.where(skip, state.before, state.last)
        decision = decided(quote, skip, account.spent, (finite, Reason.PLANNED), skipped=Reason.SCHEDULED)
        return decision, Counts(account, first, last, before, state.computed + ~skip, due, lot)

    def _due(self, step: Step, state: Counts, b: int, decay: float) -> int:
        """The step that sample b computes next."""
        i, first, speedup = step.index, int(state.first[b]), float(state.account.budget[b])
        if step.timetable is None:
            long = i - int(state.last[b]) > self.bounds.longest
            return i if long or int(state.computed[b]) * speedup < i + 1 - first - 1e-9 else i + 1
        if state.due[b] >= i:
            return int(state.due[b])
        plan = plan_of(step.timetable, self.bounds.longest, self.bounds.last, decay, TRUST)
        speedup, lot = self._ratio(float(state.account.budget[b]), step), float(state.lot[b])
        left = max(0, dealt(plan, speedup, lot, first) - int(state.computed[b]))
        return i + plan.gap_of(i, int(state.before[b]), left, seen=lot > 0)

    def _ratio(self, asked: float, step: Step) -> float:
        """Steps of the run over computed ones, where this was `asked`."""
        return asked

    def notes(self, run: FinishedRun) -> list[str]:
        """Of samples that executed a tenth more than this deals them."""
        asked, steps = per_sample(self.speedup, len(run.work), "speedup"), run.steps
        dealt_steps = torch.where(steps < asked, steps / asked, (steps / asked).ceil())  # less than one cannot be dealt
        late = (run.work > 1.1 * dealt_steps / steps).nonzero().flatten()
        if not len(late):
            return []
        wanted, reached = (", ".join(f"{x:.4g}" for x in values[late].tolist()) for values in (asked, 1 / run.work))
        return [f"samples {late.tolist()} did not reach their speedup: {wanted} asked for, {reached} reached."]

    def settle(self, ratio: Rows, computed: Rows, state: Counts) -> Counts:
        return state._replace(account=state.account.closed(ratio, computed))


@dataclass(frozen=True)
class Evaluations(Counted):
    """So many evaluations of a run, however many steps it has: on a finer grid a cache with few of them can be nearer
    the limit of ever finer grids than a run of so many steps is (docs/benchmarks.md). A step of a solver that calls the
    denoiser twice is two; guidance branches are one together. Where two denoisers take turns each computes its share.
    Raises ModeError in a loop of which nobody knows how many steps it makes.
    """

    asked_as: ClassVar[str] = "evaluations"

    def check(self, step: Step) -> None:
        if step.timetable is None:
            raise ModeError(
                "evaluations=... is a number for a whole run, and how many steps this loop makes is not known. Pass "
                "the pipeline with its scheduler, a dicache.Family(noise_schedule=..., times=[...]), or speedup=..."
            )

    def _ratio(self, asked: float, step: Step) -> float:
        assert step.timetable is not None
        return max(1.0, (step.total - step.timetable.begin) * len(step.weights) / asked)

    def notes(self, run: FinishedRun) -> list[str]:
        """Of samples that had to compute more."""
        asked, computed = per_sample(self.speedup, len(run.work), self.asked_as), run.computed
        late = (computed > asked).nonzero().flatten()
        if not len(late):
            return []
        wanted, made = (", ".join(f"{x:g}" for x in values[late].tolist()) for values in (asked, computed))
        return [f"samples {late.tolist()} computed more than the evaluations asked for: {made} for {wanted}."]


def dealt(plan: Plan, speedup: float, lot: float, first: int = 0) -> int:
    """How many steps a sample computes, from its first one on."""
    steps = len(plan.time) - first
    wanted = max(steps / speedup, plan.fewest(first))
    return min(steps, math.floor(wanted) + (lot > 0 and TURNS * math.log(lot) % 1 < wanted % 1))
