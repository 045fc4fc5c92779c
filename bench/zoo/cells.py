"""The zoo's table of tables: at every setting of every model, dicache against the best of its rivals.

A cell is a setting and a target. At an error it compares speed-ups, at a share of the work it compares errors, and
either way a ratio above one says that dicache is ahead:

    ratio = ours / best    (speed-ups at a median error)        ratio = best / ours    (median errors at a work)

with a 95 % interval from drawing the conditions again, 400 times; who is best is found anew in every draw. A sweep that
ends before an error counts as the end of it; at a work it does not reach an arm counts for nothing.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dicache.bench.harness.curves import TINY, Curve, curves
from dicache.bench.harness.store import Facts

ERRORS, WORKS = (0.01, 0.03, 0.1), (0.5, 0.35, 0.25)
DRAWS = 400
RIVALS = {"best baseline": ("baseline",), "best peer": ("peer",), "best of everything": ("baseline", "peer")}
OURS = ("dicache", "dicache, speedup", "dicache, tuned")


@dataclass(frozen=True)
class Cell:
    setting: str
    ours: str
    rivals: str
    """A key of RIVALS."""
    kind: Literal["error", "work"]
    target: float
    ratio: float
    low: float
    high: float
    best: str
    """The rival that is best."""


def cells(facts: Facts) -> list[Cell]:
    """Of one sweep."""
    drawn = {curve.name: curve for curve in curves(facts)}
    setting = ", ".join(str(value) for value in facts["setting"].values())
    return [
        cell
        for ours in OURS
        if ours in drawn
        for words, kinds in RIVALS.items()
        for kind, targets in (("error", ERRORS), ("work", WORKS))
        for target in targets
        if (cell := _cell(setting, drawn[ours], words, _of(drawn.values(), kinds), kind, target)) is not None
    ]


def _of(drawn: Collection[Curve], kinds: Collection[str]) -> list[Curve]:
    return [curve for curve in drawn if curve.kind in kinds]


def _cell(setting: str, ours: Curve, words: str, rivals: Sequence[Curve], kind: str, target: float) -> Cell | None:
    worth = [_worth(curve, kind, target) for curve in (ours, *rivals)]
    if math.isnan(worth[0]) or not rivals or np.all(np.isnan(worth[1:])):
        return None
    best = int(np.nanargmax(worth[1:]))
    ratios = sorted(_resampled(ours, rivals, kind, target))
    low, high = (float(np.quantile(ratios, q)) for q in (0.025, 0.975)) if ratios else (math.nan, math.nan)
    named: Literal["error", "work"] = "error" if kind == "error" else "work"
    return Cell(setting, ours.name, words, named, target, worth[0] / worth[1 + best], low, high, rivals[best].name)


def _worth(curve: Curve, kind: str, target: float) -> float:
    """More is better: the speed-up at an error, one over the error at a work; nan where the arm does not get there."""
    if kind == "work":
        error = curve.median_at(1 / target)
        return math.nan if error is None else 1 / max(error, TINY)
    reach = curve.reach(target)
    if reach is None:
        return math.nan
    return math.nan if reach.counted is None else reach.speedup


def _resampled(ours: Curve, rivals: Sequence[Curve], kind: str, target: float) -> Iterator[float]:
    random = np.random.default_rng(0)
    for _ in range(DRAWS):
        rows = random.integers(ours.errors.shape[1], size=ours.errors.shape[1])
        again = [replace(curve, errors=curve.errors[:, rows]) for curve in (ours, *rivals)]
        worth = [_worth(_rising(curve), kind, target) for curve in again]
        if not (math.isnan(worth[0]) or np.all(np.isnan(worth[1:]))):
            yield worth[0] / float(np.nanmax(worth[1:]))


def _rising(curve: Curve) -> Curve:
    """Without the points that another of the same arm dominates, as medians are now."""
    medians = np.median(curve.errors, axis=1)
    ahead = [i for i in range(len(medians)) if medians[i] > TINY and np.all(medians[i] < medians[i + 1 :])]
    return replace(curve, speedups=curve.speedups[ahead], errors=curve.errors[ahead])


@dataclass(frozen=True)
class Verdict:
    """Over all cells of one of dicache's ways against one kind of rivals."""

    ours: str
    rivals: str
    count: int
    mean: float
    """Geometric."""
    level: float
    """Share of cells with a ratio of at least 0.97, or an interval that reaches 1."""
    worst: Cell


def verdicts(compared: Sequence[Cell]) -> list[Verdict]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in compared:
        groups.setdefault((cell.ours, cell.rivals), []).append(cell)
    return [
        Verdict(
            ours,
            rivals,
            len(group),
            float(np.exp(np.mean([math.log(cell.ratio) for cell in group]))),
            sum(cell.ratio >= 0.97 or cell.high >= 1 for cell in group) / len(group),
            min(group, key=lambda cell: cell.ratio),
        )
        for (ours, rivals), group in groups.items()
    ]
