"""A batch's evaluations, dealt by how hard its prompts are: those that are known to be easy compute less, the hard ones
more, and all together as many as they would.

With n_b the steps that sample b computes, k_b what its errors are expected to be over the law's, and L(n) what the
best plan of n steps leaves at amplitude 1, squared (`dicache.planning.law_plan`), over that of the even share,

    minimise  sum_b k_b^(2 TRUSTED) L(n_b)        where  sum_b n_b  is that of all samples alike

by dynamic programming: L falls in jumps, where a plan has room for one more early step. How early errors fade decides
what a step is worth, and is not known well: each n is priced by whichever of two rates has it lose more. What is known
of a prompt is half true (log errors of two seeds of a caption correlate at 0.6), so it counts half; and no sample gets
less than LEAST or more than MOST times the even share.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from dicache.controllers.base import Around, FinishedRun
from dicache.controllers.counted import Counted, Counts
from dicache.planning.error_law import DECAY, TRUST, UNGUIDED_DECAY, way_decay
from dicache.planning.law_plan import Plan, plan_of
from dicache.types import Decision, Quote, Rows, RunFacts, Step

LEAST, MOST = 0.85, 1.45
TRUSTED = 0.5


class Dealing(NamedTuple):
    counts: Counts
    over: bool
    """Whether it was dealt, or cannot be."""


@dataclass(frozen=True)
class Dealt(Around):
    """`inner` is a `Counted` with one speed-up for all samples; with one each nothing is moved. `hardness` says log k
    of the samples but for a constant, (B,), or None where nothing is known of them.
    """

    hardness: Callable[[RunFacts], Rows | None]

    def init(self, samples: int) -> Dealing:
        return Dealing(self.inner.init(samples), samples < 2)

    def decide(self, quote: Quote, step: Step, state: Dealing) -> tuple[Decision, Dealing]:
        if not state.over and quote.facts.own_conditions:
            state = Dealing(self._dealt(quote.facts, state.counts), True)
        decision, counts = self.inner.decide(quote, step, state.counts)
        return decision, state._replace(counts=counts)

    def settle(self, ratio: Rows, computed: Rows, state: Dealing) -> Dealing:
        return state._replace(counts=self.inner.settle(ratio, computed, state.counts))

    def describe(self, state: Any) -> None:  # noqa: ANN401
        return None

    def notes(self, run: FinishedRun) -> list[str]:
        """The inner rule's, where all together executed more than was asked for."""
        alike = run._replace(work=run.work.mean().expand(len(run.work)))
        return self.inner.notes(alike)

    def _dealt(self, facts: RunFacts, counts: Counts) -> Counts:
        asked, timetable = counts.account.budget, facts.timetable
        if timetable is None or bool((asked != asked[0]).any()) or (logs := self.hardness(facts)) is None:
            return counts
        assert isinstance(self.inner, Counted)
        first = int(counts.first.max().clamp(min=0))
        steps = len(timetable.sigmas) - first
        total = round(len(logs) * steps / float(asked[0]))
        left = left_by(self.inner, facts, max(1, total // len(logs)), first)
        dealt = deal((2 * TRUSTED * (logs - logs.mean())).exp().tolist(), left, total)
        # A hair less than steps / n, so that n steps are dealt whatever the rounding.
        speedups = torch.tensor([steps / (n + 1e-6) for n in dealt], dtype=torch.float64)
        return counts._replace(account=counts.account._replace(budget=speedups))


def plan_for(rule: Counted, facts: RunFacts) -> Plan:
    """That by which the rule deals."""
    return _plan(rule, facts, way_decay(facts.guidance))


def _plan(rule: Counted, facts: RunFacts, decay: float) -> Plan:
    assert facts.timetable is not None
    return plan_of(facts.timetable, rule.bounds.longest, rule.bounds.last, decay, TRUST)


def left_by(rule: Counted, facts: RunFacts, even: int, first: int = 0) -> list[float]:
    """L(n) for n = 0 .. all steps from the `first` on, over L(even); never more for more steps, inf where there is no
    such plan.
    """
    plan, prices = plan_for(rule, facts), [_plan(rule, facts, decay) for decay in (UNGUIDED_DECAY, DECAY)]
    possible, steps, left = plan.fewest(first), len(plan.time) - first, [math.inf]
    least = [price.left_of(plan.way(max(even, possible), first)) or 1.0 for price in prices]
    for n in range(1, steps + 1):
        way = plan.way(n, first) if n >= possible else None
        losses = [math.inf if way is None else p.left_of(way) / own for p, own in zip(prices, least, strict=True)]
        left.append(min(left[-1], max(losses)))
    return left


def deal(weights: Sequence[float], left: Sequence[float], total: int) -> list[int]:
    """n_b, from what counts of each sample, L(n), and their sum; the fewest that there are where that is too little."""
    even, possible = total / len(weights), next(n for n, value in enumerate(left) if math.isfinite(value))
    if even <= possible:
        return [possible] * len(weights)
    least = min(max(possible, round(LEAST * even)), math.floor(even))
    counts = range(least, min(len(left) - 1, max(round(MOST * even), math.ceil(even))) + 1)
    lost, ways = np.full(total + 1, np.inf), list[np.ndarray]()
    lost[0] = 0.0
    order = sorted(range(len(weights)), key=lambda b: weights[b])
    for b in order:
        ahead = np.stack([np.append(np.full(n, np.inf), lost[: total + 1 - n]) + weights[b] * left[n] for n in counts])
        ways.append(ahead.argmin(0))
        lost = ahead.min(0)
    dealt, rest = [0] * len(weights), total
    for b, way in zip(reversed(order), reversed(ways), strict=True):
        dealt[b] = counts[int(way[rest])]
        rest -= dealt[b]
    return dealt
