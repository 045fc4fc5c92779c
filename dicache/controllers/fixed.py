"""A schedule known before the run: the same steps compute for all samples, or each sample has its own. What it costs is
not asked.

The honest baseline of every adaptive method (FORA and many others with their intervals), and the form in which searched
schedules run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dicache.controllers.base import Controller, cost_of, decided
from dicache.errors import BudgetError, ModeError
from dicache.types import Decision, Quote, Reason, Rows, Site, Step


@dataclass(frozen=True)
class Fixed(Controller[Rows]):
    """`computed[i]` are the steps at which sample i computes; one entry serves all samples. Unknown errors compute
    anyway.
    """

    computed: tuple[frozenset[int], ...]

    @property
    def reads_error(self) -> bool:
        return False

    def init(self, samples: int) -> Rows:
        if len(self.computed) not in (1, samples):
            raise BudgetError(f"the schedule is for {len(self.computed)} samples but this run has {samples}.")
        return torch.zeros(samples, dtype=torch.float64)

    def decide(self, quote: Quote, step: Step, state: Rows) -> tuple[Decision, Rows]:
        due = torch.tensor([step.index in steps for steps in self.computed]).expand(len(quote.cost))
        skip = ~due & quote.cost.isfinite()
        spent = state + cost_of(quote, skip)
        return decided(quote, skip, spent, (due, Reason.SCHEDULED), skipped=Reason.SCHEDULED), spent


@dataclass(frozen=True)
class FixedAt(Fixed):
    """A schedule for every site, by its path; at others `computed`."""

    sites: Mapping[str, frozenset[int]]

    def at(self, site: Site, sites: int) -> Fixed:
        return Fixed((self.sites[site.path],) if site.path in self.sites else self.computed)


def every(interval: int, steps: int, *, first: float = 0.2, last: int = 0) -> Fixed:
    """Every `interval`-th of `steps` steps after the first share, which computes; so do the `last` ones."""
    warm = math.ceil(first * steps)
    due = (i for i in range(steps) if i < warm or i >= steps - last or (i - warm + 1) % interval == 0)
    return Fixed((frozenset(due),))


def centred(steps: int, computed: int, centre: float, power: float = 1.2) -> Fixed:
    """DeepCache's non-uniform schedule (arXiv 2312.00858): `computed` of `steps` steps, evenly along a root of how far
    they lie from `centre`, so that most lie near it.

        r(x) = sgn(x) |x|^(1/p),    step k = floor(c + r^-1(r(-c) + k / n (r(T - c) - r(-c)))),    k = 0 .. n - 1

    Where two would be one p falls by hundredths, down to 1, which is even. The first step computes. Raises ModeError
    for numbers that make no sense.
    """
    if not (1 <= computed <= steps and 0 <= centre <= steps and power >= 1):
        raise ModeError(
            f"centred({steps}, {computed}, {centre}, {power}): expected 1 to {steps} computed steps, a centre among "
            "the steps, and a power from 1 on."
        )
    for hundredths in range(round(100 * power), 99, -1):
        p = hundredths / 100
        low, high = _root(-centre, p), _root(steps - centre, p)
        ways = [low + k / computed * (high - low) for k in range(1, computed)]
        due = {0} | {min(math.floor(centre + _root(way, 1 / p) + 1e-9), steps - 1) for way in ways}
        if len(due) == computed:
            break
    return Fixed((frozenset(due),))


def _root(x: float, p: float) -> float:
    return math.copysign(abs(x) ** (1 / p), x)


def accumulated(changes: Sequence[float], threshold: float) -> frozenset[int]:
    """Steps that compute so that no value is held over changes that add up to more than `threshold`; changes[i] is that
    from step i - 1 to step i (Block Caching, arXiv 2312.03209).
    """
    due, total = {0}, 0.0
    for i, change in enumerate(changes[1:], start=1):
        total += change
        if total > threshold:
            due.add(i)
            total = 0.0
    return frozenset(due)


def masks(rows: Sequence[Sequence[bool]]) -> Fixed:
    """A schedule per sample: `rows[b][i]` says whether sample b computes step i."""
    return Fixed(tuple(frozenset(i for i, computed in enumerate(row) if computed) for row in rows))
