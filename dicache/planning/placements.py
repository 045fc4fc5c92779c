"""Where to compute so many of a run's steps, before anything is known of a model: a portfolio.

    even steps, even half log SNR, half-way between the two
    the law's ways (`dicache.planning.law_plan`), with errors in noise discounted as signal^d, d = 1.2, 0.8, 0.4 and 0,
    single steps trusted in full, by 0.6 and not at all

Which of them is best changes from model to model and from solver to solver by up to six times the error, and nothing
that is known beforehand says which (docs/notebook/2026-11-29-races.md); a few prompts do.
"""

import numpy as np

from dicache.planning.error_law import DECAY, TRUST, UNGUIDED_DECAY
from dicache.planning.law_plan import plan_of
from dicache.types import Timetable

LAWS = ((DECAY, 1.0), (1.5 * DECAY, 1.0), (UNGUIDED_DECAY, 1.0), (0.0, 1.0), (DECAY, TRUST), (0.0, 0.0))
"""Discount and trust of each."""


def placements(timetable: Timetable, computed: int, longest: int, last: int) -> dict[str, tuple[int, ...]]:
    """Ways to compute so many steps of a run, by name: their indices, the first step and the `last` ones among them,
    with no more than `longest` skipped in a row. Left out where that cannot be; two names may have the same way.
    """
    steps = np.linspace(0.0, 1.0, len(timetable.half_log_snrs))
    times = np.abs(np.array(timetable.half_log_snrs) - timetable.half_log_snrs[0])
    times /= times[-1]
    evens = {"even steps": steps, "even half log SNR": times, "between": (steps + times) / 2}
    ways = {name: tuple(spaced(at, computed, last)) for name, at in evens.items()}
    if computed - last > 2:  # a line needs two steps, and the first one's output stands for noise alone
        ways |= {
            f"{name}, two first": (0, *(1 + i for i in spaced(at[1:], computed - 1, last)))
            for name, at in evens.items()
        }
    ways = {name: way for name, way in ways.items() if max(np.diff([*way, len(steps)])) <= longest + 1}
    for decay, trust in LAWS:
        plan = plan_of(timetable, longest, last, decay, trust)
        if computed >= plan.fewest():
            ways[f"law, {decay:.2g}, {trust:.2g}"] = tuple(plan.way(computed))
    return ways


def spaced(at: np.ndarray, computed: int, last: int) -> list[int]:
    """The `computed` steps, the first and the `last` ones among them, whose places lie most evenly; places, (T,), grow
    from step to step.
    """
    ahead = computed - last  # of which the first is step 0
    end = np.append(at, 2 * at[-1] - at[-2])[len(at) - last]
    steps = np.abs(at[:, None] - np.linspace(at[0], end, ahead + 1)[:-1]).argmin(0)
    for k in range(1, ahead):  # where many are wanted close together, each is one beyond the one before
        steps[k] = max(steps[k], steps[k - 1] + 1)
    steps = np.minimum(steps, len(at) - computed + np.arange(ahead))  # and leaves room for those behind it
    return [*map(int, steps), *range(len(at) - last, len(at))]
