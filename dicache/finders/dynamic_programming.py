"""Dynamic programming on error curves weighted by measured sensitivity: for every site and every number of computed
steps the best places for them (CacheQuant, arXiv 2503.01323, with weights).

    cost(i, j) = sum over t = i + 1 .. j - 1 of  w[t] E(i, t - i)^2          computed at i and next at j
    V(j, n)    = min over i of  V(i, n - 1) + cost(i, j)

w[t] is what is left at the end of a stale value at step t (`ScheduleMeasurements.sensitivity`), E the relative L2
change of the value (`Curves.l2`). As published it is weighted=False, norm="l1" (the change itself, not squared), groups
of `shortest` to `longest` steps (half of the interval to twice), and what is held corrected by coefficients of
`dicache.fit` with kind="affine". Sites are taken to be independent, so that what each gets at a price of lambda per
MAC is an exact optimum of the whole: sweeping lambda gives the front.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dicache.approximators.fitted.coefficients import Fitted
from dicache.errors import ScheduleError
from dicache.finders.base import Finder
from dicache.measuring.schedule_measurements import ScheduleMeasurements
from dicache.schedules.action_table import Table
from dicache.types import Action

PRICES = 200
"""Most that are tried."""


@dataclass(frozen=True)
class DynamicProgramming(Finder):
    name: ClassVar[str] = "optimal"
    weighted: bool = True
    """By sensitivity; without, every stale value counts the same and nothing but the uncached run is needed."""
    fill: Action = Action.REUSE
    norm: Literal["l2", "l1"] = "l2"
    """Of changes: squares of L2, or L1."""
    shortest: int = 1
    """Fewest steps from a computed one to the next."""
    longest: int | None = None
    """Most of them; None for all that the calibration's curves reach."""
    fitted: Fitted | None = None
    """What corrects values that are held, in the place of `fill`."""

    def __post_init__(self) -> None:
        if self.norm not in ("l2", "l1"):
            raise ScheduleError(f"norm is {self.norm!r}. Expected 'l2' or 'l1'.")
        if self.shortest < 1 or (self.longest is not None and self.longest < self.shortest):
            raise ScheduleError(f"groups of {self.shortest} to {self.longest} steps: expected 1 or more, in order.")
        if self.fitted is None and self.fill is Action.CORRECT:
            raise ScheduleError("fill=CORRECT needs what corrects: DynamicProgramming(fitted=dicache.fit(...)).")

    def tables(self, measurements: ScheduleMeasurements, cost: float | None, seed: int) -> Sequence[Table]:
        steps, sites = measurements.basis.shape
        weight = measurements.sensitivity if self.weighted else np.ones((steps, sites))
        curves = measurements.curves.l2**2 if self.norm == "l2" else measurements.curves.l1
        bounds = self.shortest, self.longest or steps
        costs = [gap_costs(curves[:, :, s], weight[:, s], *bounds) for s in range(sites)]
        ways = [segmentations(cost) for cost in costs]
        if not all(ways):
            raise ScheduleError(
                f"{steps} steps fall into no groups of {bounds[0]} to {bounds[1]} whose values the curves reach "
                f"(longest={measurements.calibration.longest} in the calibration). Give other bounds."
            )
        fill = self.fill if self.fitted is None else Action.CORRECT
        price = np.array([cell.macs for cell in measurements.basis.cells])
        return [measurements.filled(mask, fill) for mask in _front(ways, price, steps)]


def gap_costs(curve: np.ndarray, weight: np.ndarray, shortest: int = 1, most: int | None = None) -> np.ndarray:
    """(T, T + 1), inf where a gap is longer than the curve, out of bounds, or goes back; from what a site's values are
    off by, (T, K), and weights, (T,).
    """
    steps, longest = curve.shape
    cost = np.full((steps, steps + 1), np.inf)
    for i in range(steps):
        cost[i, i + 1] = 0.0
        for j in range(i + 2, min(i + longest + 1, steps) + 1):
            cost[i, j] = cost[i, j - 1] + weight[j - 1] * curve[i, j - 1 - i - 1]
    gap = np.arange(steps + 1) - np.arange(steps)[:, None]
    return np.where((gap < shortest) | (gap > (most or steps)), np.inf, cost)


def segmentations(cost: np.ndarray) -> dict[int, tuple[float, list[int]]]:
    """By how many steps compute: the least cost, and which steps; only numbers that can be had."""
    steps = len(cost)
    value, come = np.full((steps + 1, steps + 1), np.inf), np.zeros((steps + 1, steps + 1), dtype=int)
    value[0, 0] = 0.0
    for n in range(1, steps + 1):
        through = value[:steps, n - 1, None] + cost
        come[:, n], value[:, n] = through.argmin(0), through.min(0)
    ways = {}
    for n in range(1, steps + 1):
        if np.isfinite(value[steps, n]):
            way, j = [], steps
            for k in range(n, 0, -1):
                j = int(come[j, k])
                way.append(j)
            ways[n] = (float(value[steps, n]), way[::-1])
    return ways


def _front(ways: list[dict[int, tuple[float, list[int]]]], price: np.ndarray, steps: int) -> list[np.ndarray]:
    """Masks, (T, S), from all prices of a MAC at which some site's best number of computed steps changes."""
    if len(ways) == 1:
        return [_mask([way], steps) for _, way in ways[0].values()]
    slopes = [
        (way[n][0] - way[n + 1][0]) / max(price[s], 1.0)
        for s, way in enumerate(ways)
        for n in way
        if n + 1 in way and way[n][0] >= way[n + 1][0]
    ]
    prices = np.unique([0.0, *slopes, max(slopes, default=0.0) * 2 + 1e-30])
    if len(prices) > PRICES:
        prices = prices[np.linspace(0, len(prices) - 1, PRICES).round().astype(int)]
    return [
        _mask(
            [way[min(way, key=lambda n: way[n][0] + lam * price[s] * n)][1] for s, way in enumerate(ways)],
            steps,
        )
        for lam in prices
    ]


def _mask(ways: Sequence[Sequence[int]], steps: int) -> np.ndarray:
    mask = np.zeros((steps, len(ways)), dtype=bool)
    for site, computed in enumerate(ways):
        mask[list(computed), site] = True
    return mask
