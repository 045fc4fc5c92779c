"""One result file: begun, filled point by point, interrupted, resumed, merged into, compared.

A file holds what it was measured with (setting, captions, package versions, threads, trials) and the arms still
`pending`. It is written anew after every point, whole or not at all, so an interruption loses one point. Points of
pending arms stay and are not drawn again; points of arms that are done are replaced only when those
arms are asked for again.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dicache.bench.harness.costs import Cost
from dicache.bench.harness.measure import Point
from dicache.bench.models.reference import Setting
from dicache.files.atomic import write_text

FORMAT = 2
RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "torchmetrics", "cache-dit", "dit-smoothcache", "DeepCache")
Facts = dict[str, Any]
"""A result file's content."""


def circumstances(setting: Setting, captions: Sequence[str], *, trials: int) -> Facts:
    """What must be equal for points to stand in one file."""
    drawn = {name: value for name, value in dataclasses.asdict(setting).items() if name != "warmup"}
    return {
        "format": FORMAT,
        "setting": drawn,
        "captions": list(captions),
        "trials": trials,
        "versions": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load(path: Path) -> Facts:
    facts: Facts = json.loads(path.read_text())
    return facts


def differences(facts: Facts, wanted: Facts) -> list[str]:
    """What the file was measured with otherwise than is wanted now."""
    return [key for key, value in wanted.items() if facts.get(key) != value]


class Store:
    """The file at `path`, and its content."""

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path, self.facts = path, facts

    def select(self, names: Sequence[str]) -> list[str]:
        """Of the arms asked for, those to be drawn now: the pending ones, if the file waits for any of them, else all,
        whose old points and costs go.
        """
        waiting = [name for name in names if name in self.facts["pending"]]
        if waiting:
            return waiting
        for kind in ("points", "costs"):
            self.facts[kind] = [entry for entry in self.facts[kind] if entry["arm"] not in names]
        self.facts["pending"] = [*self.facts["pending"], *names]
        return list(names)

    def points(self, arm: str) -> list[Point]:
        return [Point(**entry) for entry in self.facts["points"] if entry["arm"] == arm]

    def add(self, entry: Point | Cost) -> None:
        kind = "points" if isinstance(entry, Point) else "costs"
        self.facts[kind].append(json.loads(json.dumps(dataclasses.asdict(entry))))
        self.save()

    def done(self, arm: str, order: Iterable[str]) -> None:
        """The arm has all its points and its cost; arms stand in this order."""
        self.facts["pending"].remove(arm)
        position = {name: i for i, name in enumerate(order)}
        for kind in ("points", "costs"):
            self.facts[kind].sort(key=lambda entry: position.get(entry["arm"], len(position)))
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.facts, indent=1))
