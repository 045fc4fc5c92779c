"""A sweep of the zoo: one model under one solver with one number of steps, in one file.

Filled point by point, resumed where it stopped; what was measured with other packages, arms or conditions is drawn
anew. Every point is held against the uncached run of the same seeds, and against a run of LIMIT times the steps.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dicache.bench.arms.arm import Arm
from dicache.bench.harness.check_again import difference
from dicache.bench.harness.curves import curves
from dicache.bench.harness.measure import LIMIT, Point
from dicache.bench.harness.store import RESULTS, Facts, Store, differences, load, versions
from dicache.bench.harness.sweep_end import MISSING, next_value
from dicache.bench.zoo.arms import EVERYWHERE, arms
from dicache.bench.zoo.model import Model, Setting, draw
from dicache.promise.metrics import relative_error

FOLDER = RESULTS / "zoo"
CONDITIONS, FEWER = 64, 32
"""Test captions or seeds: at a model's first setting, and at the others."""
BEST_PEERS, BEST_AT = 3, 0.03
CHECKED = {"dicache": 2, "dicache, speedup": 2, "fewer steps": 2, "fixed interval, reuse": 1}
"""What `--check` draws again of every sweep: arms, and which of their values."""


class Comparison:
    """Holds latents against the uncached ones of the same conditions and seeds, and against the limit."""

    setting: Setting
    conditions: list[str]

    def __init__(self, setting: Setting, conditions: Sequence[str]) -> None:
        self.setting, self.conditions = setting, list(conditions)

    @cached_property
    def reference(self) -> Any:  # noqa: ANN401
        with torch.no_grad():
            return draw(self.setting.model.fresh(self.setting.solver), self.conditions, self.setting)

    @cached_property
    def limit(self) -> Tensor:
        finer = dataclasses.replace(self.setting, steps=LIMIT * self.setting.steps)
        with torch.no_grad():
            return draw(finer.model.fresh(finer.solver), self.conditions, finer).latents

    def point(self, arm: Arm, value: Any) -> Point:  # noqa: ANN401
        """Whatever the arm raises becomes the point's failure."""
        target = self.setting.model.fresh(self.setting.solver)
        try:
            with torch.no_grad(), arm.enter(target, value, self.setting) as setting:  # type: ignore[arg-type]
                drawn = draw(target, self.conditions, setting)  # type: ignore[arg-type]
        except Exception as error:  # a peer may fail in any way; the results say how
            return Point(arm.name, arm.kind, arm.knob, value, failure=f"{type(error).__name__}: {error}")
        return Point(
            arm=arm.name,
            kind=arm.kind,
            knob=arm.knob,
            value=value,
            work=drawn.macs / self.reference.macs,
            seconds=drawn.seconds,
            errors=relative_error(drawn.latents, self.reference.latents).tolist(),
            limit=relative_error(drawn.latents, self.limit).tolist(),
        )


@dataclasses.dataclass(frozen=True)
class Sweep:
    setting: Setting
    main: bool
    """Whether all arms are drawn: the model's first solver and grid."""
    folder: Path = FOLDER
    conditions: int = CONDITIONS
    quick: bool = False

    @property
    def path(self) -> Path:
        return self.folder / f"{self.setting.name.replace(', ', '-').replace(' ', '-')}.json"

    def arms(self) -> list[Arm]:
        """At a model's first setting all; elsewhere ours, the baselines, and the peers that did best at the first."""
        drawn = arms(self.setting)
        if not self.main:
            peers = self.best_peers()
            drawn = [
                arm for arm in drawn if (arm.kind in EVERYWHERE and arm.name != "dicache, tuned") or arm.name in peers
            ]
        if self.quick:
            drawn = [dataclasses.replace(arm, values=arm.values[1::3], onward=()) for arm in drawn]
        return drawn

    def best_peers(self) -> list[str]:
        """Of the model's first setting, by their speed-up at a median error of BEST_AT; none before it was drawn."""
        model = self.setting.model
        first = dataclasses.replace(self, setting=Setting(model, model.solvers[0], model.grids[0]), main=True)
        if not first.path.is_file():
            return []
        reached = {c.name: c.reach(BEST_AT) for c in curves(load(first.path)) if c.kind == "peer"}
        counted = {name: reach.counted for name, reach in reached.items() if reach is not None and reach.counted}
        return sorted(counted, key=lambda name: -(counted[name] or 0))[:BEST_PEERS]

    def comparison(self) -> Comparison:
        return Comparison(self.setting, self.setting.model.conditions("test", self.conditions))

    def wanted(self) -> Facts:
        """What must be equal for points to stand in one file."""
        setting, model = self.setting, self.setting.model
        return {
            "format": 1,
            "setting": {"model": model.name, "solver": setting.solver, "steps": setting.steps},
            "conditions": self.conditions,
            "versions": versions(),
            "threads": torch.get_num_threads(),
        }

    def draw(self, say: Any) -> None:  # noqa: ANN401
        """What is missing. `say` is told of every point in words."""
        wanted, comparison, drawn = self.wanted(), self.comparison(), self.arms()
        facts = load(self.path) if self.path.is_file() else None
        if facts is None or differences(facts, wanted):
            distance = relative_error(comparison.reference.latents, comparison.limit).tolist()
            facts = {**wanted, "main": self.main, "discretisation": distance, "points": [], "costs": [], "pending": []}
        store = Store(self.path, facts)
        store.facts["pending"] = [arm.name for arm in drawn]
        values = {arm.name: arm.order for arm in drawn}
        for arm in drawn:
            while (value := next_value(arm, store.points(arm.name))) is not MISSING:
                if _cannot(store.points(arm.name)):
                    break
                point = comparison.point(arm, value)
                store.add(point)
                say(f"{self.setting.name}: {arm.name}, {arm.knob} {value}: {_words(point)}")
            store.done(arm.name, values)

    def check(self) -> Iterator[tuple[str, str | None]]:
        """Draws CHECKED again; of each point its name and in words what differs, None for nothing."""
        store, comparison = Store(self.path, load(self.path)), self.comparison()
        for arm in self.arms():
            if arm.name not in CHECKED:
                continue
            points = store.points(arm.name)
            before = points[min(CHECKED[arm.name], len(points) - 1)]
            name = f"{self.setting.name}: {arm.name}, {arm.knob} {before.value}"
            yield name, difference(before, comparison.point(arm, before.value))


def _cannot(points: Sequence[Point]) -> bool:
    """Whether an arm does not run on this model: its mildest value failed."""
    return bool(points) and points[0].failure is not None


def _words(point: Point) -> str:
    if point.failure is not None:
        return point.failure.splitlines()[0]
    return f"work {point.work:.3f}, median error {sorted(point.errors)[len(point.errors) // 2]:.4f}"


def sweeps(models: Sequence[Model], folder: Path = FOLDER) -> list[Sweep]:
    """Of these models, each model's first setting first."""
    listed = []
    for model in models:
        settings = [Setting(model, solver, steps) for steps in model.grids for solver in model.solvers]
        listed += [
            Sweep(setting, main=i == 0, folder=folder, conditions=CONDITIONS if i == 0 else FEWER)
            for i, setting in enumerate(settings)
        ]
    return sorted(listed, key=lambda sweep: not sweep.main)
