"""What every gap of a course costs, at amplitude 1, and the cheapest ways through the rest of it. See
`dicache.controllers.planned` for the equations.
"""

from functools import lru_cache

import numpy as np

from dicache.law import kept, turning
from dicache.types import Course


class Plan:
    """Of one course, with at most `longest` steps skipped in a row and the `last` ones computed. `fading`: errors made
    in noise count for less.
    """

    def __init__(self, course: Course, longest: int, last: int, *, fading: bool = False) -> None:
        self.time, self.longest, self.last = np.array(course.balances), longest, last
        self.unit = np.array(course.coefficients) * [turning(b) * (kept(b) if fading else 1.0) for b in course.balances]
        self.value = self._values()
        self.ways: dict[int, list[int]] = {}

    def prices(self, anchor: int, before: int, steps: int) -> np.ndarray:
        """What each of the next steps adds, (steps,); `before` is the anchor before the anchor."""
        ahead = slice(anchor + 1, anchor + 1 + steps)
        law = np.abs((self.time[ahead] - self.time[anchor]) * (self.time[ahead] - self.time[before]))
        return np.asarray(self.unit[ahead] * law)

    def usual(self, anchor: int, before: int) -> float:
        """What the step after `anchor` adds at amplitude 1."""
        return float(self.prices(anchor, before, 1)[0])

    def most(self, i: int) -> int:
        """How many steps from step i on may be skipped."""
        return max(0, min(self.longest, len(self.time) - self.last - i))

    def gap(self, i: int, before: int, left: float, share: float) -> int:
        """How many steps from step i on the cheapest way skips, after i - 1 was computed and `before` before it.

        `left` is the squared error that the way may cost, `share` the share of its root that one gap may.
        """
        spent = np.concatenate([[0.0], self.prices(i - 1, before, self.most(i)).cumsum() ** 2])
        ways = [(*self._fewest(i + g, left - cost), g) for g, cost in enumerate(spent) if cost <= share**2 * left]
        return min(ways)[-1]

    def _fewest(self, i: int, left: float) -> tuple[int, float]:
        """Computed steps of the cheapest way from the computed step i, and its squared error."""
        allowed = np.flatnonzero(self.value[i] <= left)
        return (int(allowed[0]), float(self.value[i, allowed[0]])) if len(allowed) else (len(self.time) + 1, 0.0)

    @property
    def fewest(self) -> int:
        """Computed steps of the shortest way."""
        return int(np.flatnonzero(np.isfinite(self.value[1]))[0]) + 1

    def way(self, computed: int) -> list[int]:
        """The computed steps of the best way that has this many, for a sample of which nothing is known."""
        if computed not in self.ways:
            self.ways[computed] = self._way(computed)
        return self.ways[computed]

    def _way(self, computed: int) -> list[int]:
        steps, i, left = [0], 1, computed - 1
        while left:
            costs = [self._cost(i, g) + self.value[i + 1 + g, left - 1] for g in range(self.most(i + 1) + 1)]
            steps, left = [*steps, i], left - 1
            i += 1 + int(np.argmin(costs))
        return steps

    def _cost(self, i: int, g: int) -> float:
        """Squared, of the gap of g steps after the computed step i; the anchor before it lies as far back."""
        return float(self.prices(i, max(i - g - 1, 0), g).sum() ** 2)

    def _values(self) -> np.ndarray:
        """V, (steps + 1, steps + 1); inf where there is no such way."""
        steps = len(self.time)
        value = np.full((steps + 1, steps + 1), np.inf)
        value[steps, 0] = 0.0
        for i in range(steps - 1, 0, -1):
            for g in range(self.most(i + 1) + 1):
                value[i, 1:] = np.minimum(value[i, 1:], self._cost(i, g) + value[i + 1 + g, :-1])
        return value


@lru_cache(maxsize=16)
def plan_of(course: Course, longest: int, last: int, *, fading: bool = False) -> Plan:
    return Plan(course, longest, last, fading=fading)
