"""Reading results: an arm's points as a curve, per caption, so that arms can be compared at equal work and equal error.

Between two points of a curve the logarithm of each caption's error is interpolated linearly in the logarithm of the
speed-up. Nothing is extrapolated. At an error beyond the end of its sweep an arm reaches at least the speed-up of its
last point, and counts as that; at one before its first point it stays below that, and counts as nothing. A point that
is dominated by another point of its own arm (more work and more error), and one that lost nothing because it skipped
nothing, is left out of the curve, never out of the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

TINY = 1e-9


@dataclass(frozen=True)
class Reach:
    """How fast an arm is at an error: its speed-up, or the bound on it that the end of a sweep is."""

    speedup: float
    bound: Literal["", ">=", "<"] = ""

    @property
    def counted(self) -> float | None:
        """What is compared: the speed-up that it certainly has; None where there is none."""
        return None if self.bound == "<" else self.speedup

    def __str__(self) -> str:
        return f"{self.bound} {self.speedup:.2f}x".strip()


@dataclass(frozen=True)
class Curve:
    """One arm at one setting, by rising speed-up."""

    name: str
    kind: str
    speedups: np.ndarray
    """(P,)."""
    errors: np.ndarray
    """(P, captions)."""

    def at_speedup(self, speedup: float) -> np.ndarray | None:
        """Errors per caption at this speed-up, (captions,); None outside the curve."""
        x = np.log(self.speedups)
        if not len(x) or not x[0] - TINY <= np.log(speedup) <= x[-1] + TINY:
            return None
        logs = np.log(np.maximum(self.errors, TINY))
        return np.exp([np.interp(np.log(speedup), x, column) for column in logs.T])

    def median_at(self, speedup: float) -> float | None:
        """Median error at this speed-up; None outside the curve."""
        errors = self.at_speedup(speedup)
        return None if errors is None else float(np.median(errors))

    def speedup_at(self, error: float) -> float | None:
        """The largest speed-up whose median error is at most `error`; None outside the curve."""
        x, y = np.log(self.speedups), np.log(np.maximum(np.median(self.errors, axis=1), TINY))
        if not len(y) or not y[0] <= np.log(error) <= y[-1]:
            return None
        return float(np.exp(np.interp(np.log(error), y, x)))

    def reach(self, error: float) -> Reach | None:
        """The largest speed-up whose median error is at most `error`, or the bound that the sweep's end is; None for an
        arm that never skipped.
        """
        if not len(self.speedups):
            return None
        inside = self.speedup_at(error)
        if inside is not None:
            return Reach(inside)
        medians = np.median(self.errors, axis=1)
        return Reach(float(self.speedups[-1]), ">=") if error > medians[-1] else Reach(float(self.speedups[0]), "<")


def curves(facts: dict[str, Any], of: Literal["errors", "limit"] = "errors") -> list[Curve]:
    """Of every arm that ran, in the order of the results: its errors against the uncached run, or its distance to the
    limit, as far as that was looked at.
    """
    points = [p for p in facts["points"] if p["failure"] is None and p.get(of)]
    names = list(dict.fromkeys(p["arm"] for p in points))
    return [_curve([p for p in points if p["arm"] == name], of) for name in names]


def _curve(points: Sequence[dict[str, Any]], of: str) -> Curve:
    ordered = sorted(points, key=lambda p: (p["work"], np.median(p[of])))
    front: list[dict[str, Any]] = []
    for point in ordered:
        if np.median(point[of]) <= TINY:  # it never skipped; a logarithm has no place for it
            continue
        if not front or np.median(point[of]) < np.median(front[-1][of]):
            front.append(point)
    front.reverse()
    speedups = np.array([1 / p["work"] for p in front])
    errors = np.array([p[of] for p in front]).reshape(len(front), len(points[0][of]))
    return Curve(points[0]["arm"], points[0]["kind"], speedups, errors)


def median_interval(errors: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    if np.ptp(errors) == 0:
        return float(errors[0]), float(errors[0])
    interval = _bootstrap(errors, np.median)
    return float(interval.low), float(interval.high)


def paired_ratio(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean over captions of theirs / ours, with its 95 % bootstrap interval: above 1, ours is closer to the
    uncached run.
    """
    logs = np.log(np.maximum(theirs, TINY)) - np.log(np.maximum(ours, TINY))
    if np.ptp(logs) == 0:
        return (float(np.exp(logs[0])),) * 3
    low, high = _bootstrap(logs, np.mean)
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def _bootstrap(values: np.ndarray, statistic: Callable[..., Any]) -> Any:  # noqa: ANN401
    """95 % percentile interval, `low` and `high`."""
    rng = np.random.default_rng(0)
    return stats.bootstrap((values,), statistic, n_resamples=2000, rng=rng, method="percentile").confidence_interval
