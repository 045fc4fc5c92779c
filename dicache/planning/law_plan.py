"""What every gap of a run costs, at amplitude 1, and the best ways through the rest of it. See
`dicache.controllers.planned` for the equations.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dicache.planning.error_law import DECAY, error_rates, surviving_share
from dicache.types import Timetable


class Plan:
    """Of one timetable, with at most `longest` steps skipped in a row and the `last` ones computed. `decay` is the
    power of the signal's share with which errors count where ways are compared.
    """

    def __init__(self, timetable: Timetable, longest: int, last: int, decay: float = DECAY) -> None:
        self.time: np.ndarray = np.array(timetable.half_log_snrs)
        self.longest: int = longest
        self.last: int = last
        self.unit: np.ndarray = np.array(timetable.coefficients) * error_rates(timetable)
        self.random: bool = timetable.random
        self.surviving_share: np.ndarray = np.array(
            [surviving_share(half_log_snr, decay) for half_log_snr in timetable.half_log_snrs]
        )
        self._weigh()

    def prices(self, anchor: int, before: int, steps: int) -> np.ndarray:
        """What each of the next steps adds, (steps,); `before` is the anchor before the anchor."""
        ahead = slice(anchor + 1, anchor + 1 + steps)
        tau = np.abs(self.time[ahead] - self.time[anchor])
        law = np.sqrt(tau) if self.random else np.abs(tau * (self.time[ahead] - self.time[before]))
        prices = self.unit[ahead] * law
        return np.where(prices > 0, prices, np.inf)  # what costs nothing by the law is not known

    def usual(self, anchor: int, before: int) -> float:
        """What the step after `anchor` adds at amplitude 1."""
        return float(self.prices(anchor, before, 1)[0])

    def most(self, i: int) -> int:
        """How many steps from step i on may be skipped."""
        return max(0, min(self.longest, len(self.time) - self.last - i))

    def gap(self, i: int, before: int, left: float) -> int:
        """How many steps from step i on to skip, after i - 1 was computed and `before` before it: the first gap of the
        best way with the fewest computed steps that costs no more than `left`, squared.
        """
        counts = np.flatnonzero(np.isfinite(self.lost[i - 1]))
        gaps = self.first[i - 1, counts]
        spent = np.append(0.0, self.prices(i - 1, before, self.most(i)).cumsum() ** 2)[gaps]
        fits = np.flatnonzero(spent + self.cost[i + gaps, counts - 1] <= left)
        return int(gaps[fits[0]]) if len(fits) else 0

    def fewest(self, first: int = 0) -> int:
        """Computed steps of the shortest way from step `first` on."""
        return int(np.flatnonzero(np.isfinite(self.lost[first + 1]))[0]) + 1

    def way(self, computed: int, first: int = 0) -> list[int]:
        """The computed steps of the best way from step `first` on that has this many, for a sample of which nothing is
        known.
        """
        steps, i = [first], first + 1
        for left in range(computed - 1, 0, -1):
            steps.append(i)
            i += 1 + int(self.first[i, left])
        return steps

    def left_of(self, way: Sequence[int]) -> float:
        """What is left at the end of the errors of these computed steps' gaps, squared, at amplitude 1."""
        befores, afters = (way[0] - 1, *way), (*way[1:], len(self.time))
        gaps = [(i, before, after) for i, before, after in zip(way, befores, afters, strict=False) if after > i + 1]
        return sum(
            float((self.prices(i, b, a - i - 1) * self.surviving_share[i + 1 : a]).sum() ** 2) for i, b, a in gaps
        )

    def _weigh(self) -> None:
        """V, E and g of every way, (steps + 1, steps + 1) each, by its first computed step and how many it computes;
        inf where there is none. The anchor before a gap's lies as far back as the gap is long.
        """
        steps = len(self.time)
        self.lost: np.ndarray = np.full((steps + 1, steps + 1), np.inf)
        self.cost: np.ndarray = np.full((steps + 1, steps + 1), np.inf)
        self.first: np.ndarray = np.zeros((steps + 1, steps + 1), dtype=np.int64)
        self.lost[steps, 0] = self.cost[steps, 0] = 0.0
        for i in range(steps - 1, 0, -1):
            for g in range(self.most(i + 1) + 1):
                prices, after = self.prices(i, max(i - g - 1, 0), g), i + 1 + g
                lost = (prices * self.surviving_share[i + 1 : after]).sum() ** 2 + self.lost[after, :-1]
                better = np.flatnonzero(lost < self.lost[i, 1:])
                self.lost[i, better + 1], self.first[i, better + 1] = lost[better], g
                self.cost[i, better + 1] = prices.sum() ** 2 + self.cost[after, better]


@lru_cache(maxsize=16)
def plan_of(timetable: Timetable, longest: int, last: int, decay: float = DECAY) -> Plan:
    return Plan(timetable, longest, last, decay)
