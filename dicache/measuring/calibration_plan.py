"""What a calibration draws and takes, and what it will be worth, before most of it is drawn.

Runs are exact: every prompt once uncached and once within every level. Time is reckoned from two runs of the first
batch, one uncached and one within the middle level: a run's time is a line in what it executes. The ways of the other
levels are what the law plans (`dicache.planning.law_plan`), at the amplitude with which it plans the work of the middle
level; steps that a way has in common with one before it are not executed again (`dicache.tensors.recall`).

What n prompts are worth is what the test says of them (`dicache.promise.learn_then_test`): of 64 prompts 2 may miss a
budget that is promised at 0.9, of 480 39. How much of a budget is used then depends on how far errors of one level
spread, which nobody knows beforehand; `expected_use` says it for a profile's errors, by testing resamples of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from dicache.planning.error_law import TRUST
from dicache.planning.law_plan import Plan, plan_of
from dicache.promise.learn_then_test import accepted, failures_allowed
from dicache.promise.profile import Profile
from dicache.types import LATENT, Timetable

BUDGETS = (0.02, 0.05, 0.1)
"""Those that people ask for: what is used of a budget is the mean over them."""
RESAMPLES = 40


@dataclass(frozen=True)
class CalibrationPlan:
    """Of so many prompts; `seconds` is None where nothing was timed, because a checkpoint held it."""

    prompts: int
    levels: int
    batch: int
    undrawn: int = 0
    """Samples that are still to be drawn."""
    seconds: float | None = None
    """What the runs of one prompt take, over its levels and uncached."""

    @property
    def runs(self) -> int:
        """Of every prompt."""
        return 1 + self.levels

    @property
    def samples(self) -> int:
        return self.runs * self.prompts

    @property
    def batches(self) -> int:
        return self.runs * -(-self.prompts // self.batch)

    @property
    def remaining(self) -> float | None:
        """Seconds that are left; None where nothing was timed."""
        return None if self.seconds is None else self.seconds / self.runs * self.undrawn

    def misses(self, confidence: float) -> int:
        """How many prompts may miss a budget that is promised all the same; -1 where they are too few."""
        return failures_allowed(self.prompts, confidence)

    def of(self, prompts: int) -> "CalibrationPlan":
        """The same for another number of prompts."""
        return replace(self, prompts=prompts, undrawn=max(0, self.undrawn + self.runs * (prompts - self.prompts)))


def expected_use(
    profile: Profile, prompts: int, confidence: float, budgets: Sequence[float] = BUDGETS, seed: int = 0
) -> float | None:
    """Median error over budget at the level that so many prompts of this profile would have chosen, the mean over
    budgets and resamples; None where they are too few.
    """
    if failures_allowed(prompts, confidence) < 0:
        return None
    losses, rng = profile.losses(LATENT), np.random.default_rng(seed)
    medians = np.append(0.0, np.median(losses, axis=0))  # level 0 computes everything and loses nothing
    drawn = [losses[rng.integers(0, len(losses), prompts)] for _ in range(RESAMPLES)]
    return float(np.mean([medians[accepted(rows, bound, confidence)] / bound for rows in drawn for bound in budgets]))


def planned_way(timetable: Timetable, level: float, amplitude: float) -> list[int]:
    """The steps that a sample of this amplitude computes within an internal budget, by the law alone."""
    plan, steps = plan_of(timetable, 8, 1, trust=TRUST), len(timetable.sigmas)
    budget, anchors, i = (level / amplitude) ** 2, [0, 1], 2
    left = budget
    while i < steps:
        gap = plan.gap_within(i, anchors[-2], left)
        left = max(left - _price(plan, i, anchors[-2], gap), budget * (1 - (i + gap) / steps))
        i += gap
        if i < steps:
            anchors.append(i)
        i += 1
    return anchors


def planned_work(timetable: Timetable, level: float, amplitude: float) -> float:
    """The share of the steps that it computes."""
    return len(planned_way(timetable, level, amplitude)) / len(timetable.sigmas)


def _price(plan: Plan, i: int, before: int, gap: int) -> float:
    return float(plan.prices(i - 1, before, gap).sum() ** 2) if gap else 0.0


def works(timetable: Timetable, levels: Sequence[float], middle: int, seen: float) -> tuple[list[float], list[float]]:
    """The work of every level, at the amplitude with which the law plans what the middle one was seen to compute; and
    of it the share of the steps that it has in common with no level before, nor with the uncached run.
    """
    amplitudes = np.geomspace(0.05, 20, 41)
    off = [abs(planned_work(timetable, levels[middle], float(a)) - seen) for a in amplitudes]
    near = np.flatnonzero(np.array(off) <= min(off) + 1e-9)  # the work falls in steps: take the middle of the best one
    amplitude, steps = float(amplitudes[near[len(near) // 2]]), len(timetable.sigmas)
    ways = [planned_way(timetable, level, amplitude) for level in levels]
    there, own = {tuple(range(i)) for i in range(1, steps + 1)}, list[float]()
    for way in ways:
        steps_of_it = {tuple(way[:k]) for k in range(1, len(way) + 1)}  # what was computed before decides a latent
        own.append(len(steps_of_it - there) / steps)
        there |= steps_of_it
    return [len(way) / steps for way in ways], own


class TimedRun(NamedTuple):
    seconds: float
    work: float
    """Share of the steps that compute."""
    executed: float
    """The same but for those that a run before had computed."""


def seconds_of(
    uncached: TimedRun, within: TimedRun, timetable: Timetable | None, levels: Sequence[float], middle: int
) -> float:
    """Of all runs of what was drawn once uncached and once within the middle level."""
    if timetable is None or not timetable.half_log_snrs or within.executed >= 0.999:
        return uncached.seconds + len(levels) * within.seconds
    slope = max(0.0, (uncached.seconds - within.seconds) / (1 - within.executed))
    fixed = within.seconds - slope * within.executed
    _, own = works(timetable, levels, middle, within.work)
    return uncached.seconds + sum(max(0.0, fixed) + slope * share for share in own)
