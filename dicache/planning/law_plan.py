"""What every gap of a run costs, at amplitude 1, and the best ways through the rest of it. See
`dicache.controllers.planned` for the equations.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dicache.planning.error_law import DECAY, error_rates, surviving_share
from dicache.types import Timetable

REACH = 4.0
"""How many times as far as its anchors lie apart a line is drawn at most: what outputs are rough by is multiplied as
often.
"""
AT_FIRST = 0.3
"""How far from the last computed step a run may go that has not shown any error yet, in half log signal-to-noise."""


class Plan:
    """Of one timetable, with at most `longest` steps skipped in a row and the `last` ones computed. Where ways are
    compared, `decay` is the power of the signal's share with which errors count, and `trust` that of all that is known
    of single steps: at 0 all outputs are taken to turn alike and reach as far. What a way costs is by all that is
    known.
    """

    def __init__(self, timetable: Timetable, longest: int, last: int, decay: float = DECAY, trust: float = 1.0) -> None:
        self.time: np.ndarray = np.array(timetable.half_log_snrs)
        self.longest: int = longest
        self.last: int = last
        self.unit: np.ndarray = np.array(timetable.coefficients) * error_rates(timetable)
        self.trusted: np.ndarray = self.unit**trust
        self.random: bool = timetable.random
        self.surviving_share: np.ndarray = np.array(
            [surviving_share(half_log_snr, decay) for half_log_snr in timetable.half_log_snrs]
        )
        self._weigh()

    def prices(self, anchor: int, before: int, steps: int, unit: np.ndarray | None = None) -> np.ndarray:
        """What each of the next steps adds, (steps,); `before` is the anchor before the anchor. `unit` is what a step
        adds where the law has grown to 1, by default all that is known of it.
        """
        ahead, unit = slice(anchor + 1, anchor + 1 + steps), self.unit if unit is None else unit
        tau = np.abs(self.time[ahead] - self.time[anchor])
        law = np.sqrt(tau) if self.random else np.abs(tau * (self.time[ahead] - self.time[before]))
        prices = unit[ahead] * law
        return np.where(prices > 0, prices, np.inf)  # what costs nothing by the law is not known

    def reuse_prices(self, anchor: int, steps: int) -> np.ndarray:
        """The same where `anchor` is all that is computed, and held."""
        ahead = slice(anchor + 1, anchor + 1 + steps)
        tau = np.abs(self.time[ahead] - self.time[anchor])
        return self.trusted[ahead] * (np.sqrt(tau) if self.random else tau)

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

    def gap_within(self, i: int, before: int, left: float) -> int:
        """The same, of ways that part from here: which first gap is best is asked of it as it is, from the anchors that
        there are, and none is further than a line reaches from them.
        """
        most = self.most(i)
        gaps = np.arange(min(most, self.reach(i - 1, before)) + 1)
        ahead, steps = slice(i, i + int(gaps[-1])), int(gaps[-1])
        felt = self.prices(i - 1, before, steps, self.trusted) * self.surviving_share[ahead]
        lost = np.append(0.0, felt.cumsum() ** 2)[:, None] + self.lost[i + gaps]  # (gaps, counts)
        best = lost.argmin(0)
        spent = np.append(0.0, self.prices(i - 1, before, steps).cumsum() ** 2)[best]
        cost = spent + self.cost[i + best, np.arange(len(best))]
        fits = np.flatnonzero(np.isfinite(lost.min(0)) & (cost <= left))
        return int(best[fits[0]]) if len(fits) else 0

    def gap_of(self, i: int, before: int, computed: int, *, seen: bool = True) -> int:
        """How many steps from step i on to skip, after i - 1 was computed and `before` before it, -1 for none: the
        first gap of the best way that computes so many more. `seen` says whether the run has shown an error.
        """
        first = self._gaps(i - 1, before, computed, seen=seen)
        lost = [
            own + (self._left(i - 1, i + g, computed) if before < 0 else self.lost[i + g, computed]) for g, own in first
        ]
        return first[int(np.argmin(lost))][0] if np.isfinite(lost).any() else first[-1][0]

    def _gaps(self, anchor: int, before: int, computed: int, *, seen: bool = True) -> list[tuple[int, float]]:
        """The gaps that may follow on `anchor` and what each costs, squared; those that are too far where no other
        leaves a way.
        """
        i, most = anchor + 1, self.most(anchor + 1)
        prices = (
            self.prices(anchor, before, most, self.trusted) if before >= 0 else self.reuse_prices(anchor, most)
        ) * self.surviving_share[i : i + most]
        costs = np.append(0.0, prices.cumsum() ** 2)
        reach = self.reach(anchor, before, seen=seen)
        ways = np.isfinite([self.lost[i + g, computed] for g in range(most + 1)])
        near = ways[: reach + 1].any()
        return [(g, float(costs[g])) for g in range(most + 1) if g <= reach or not near]

    def _left(self, before: int, i: int, computed: int) -> float:
        """V of the ways that begin at the computed step i, after `before`, and compute so many steps."""
        if computed < 1 or i >= len(self.time):
            return float(self.lost[i, computed])
        return min(own + float(self.lost[i + 1 + g, computed - 1]) for g, own in self._gaps(i, before, computed - 1))

    def reach(self, anchor: int, before: int, *, seen: bool = True) -> int:
        """How many steps after `anchor` may be skipped by what lies behind."""
        tau = np.abs(self.time[anchor + 1 :] - self.time[anchor])
        new = before < 0 or not seen
        far = np.flatnonzero(tau > (AT_FIRST if new else REACH * abs(self.time[anchor] - self.time[before])))
        steps = int(far[0]) if len(far) else len(tau)
        return steps if new else max(1, steps)

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
        """What is left at the end of the errors of these computed steps' gaps, squared, at amplitude 1, as far as
        single steps are trusted.
        """
        befores, afters = (way[0] - 1, *way), (*way[1:], len(self.time))
        gaps = [(i, before, after) for i, before, after in zip(way, befores, afters, strict=False) if after > i + 1]
        return sum(
            float((self.prices(i, b, a - i - 1, self.trusted) * self.surviving_share[i + 1 : a]).sum() ** 2)
            for i, b, a in gaps
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
                felt = self.prices(i, max(i - g - 1, 0), g, self.trusted) * self.surviving_share[i + 1 : after]
                lost = felt.sum() ** 2 + self.lost[after, :-1]
                better = np.flatnonzero(lost < self.lost[i, 1:])
                self.lost[i, better + 1], self.first[i, better + 1] = lost[better], g
                self.cost[i, better + 1] = prices.sum() ** 2 + self.cost[after, better]


@lru_cache(maxsize=16)
def plan_of(timetable: Timetable, longest: int, last: int, decay: float = DECAY, trust: float = 1.0) -> Plan:
    return Plan(timetable, longest, last, decay, trust)
