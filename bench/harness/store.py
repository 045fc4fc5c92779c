"""One result file: begun, filled point by point, interrupted, resumed, merged into, compared.

A file holds what it was measured with (setting, captions, package versions, threads, trials) and the arms still
`pending`. It is written anew after every point, whole or not at all, so an interruption loses one point. A point is its
arm's name and the value of its knob: what is there stays and is not drawn again, whatever arms and values joined since,
unless it is asked for anew.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
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
OF_ALL = ("torch", "diffusers", "transformers", "numpy", "torchmetrics")
PACKAGES = (*OF_ALL, "cache-dit", "dit-smoothcache", "DeepCache")
"""What versions are written down; those that only some arms need count for these alone."""
OF_AN_ARM = ("warmup", "sigmas")
"""What of a setting its arms choose."""
Facts = dict[str, Any]
"""A result file's content."""


def circumstances(setting: Setting, captions: Sequence[str], *, trials: int) -> Facts:
    """What must be equal for points to stand in one file."""
    drawn = {name: value for name, value in dataclasses.asdict(setting).items() if name not in OF_AN_ARM}
    return {
        "format": FORMAT,
        "setting": drawn,
        "captions": list(captions),
        "trials": trials,
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str | None]:
    """Of PACKAGES, as they are installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load(path: Path) -> Facts:
    facts: Facts = json.loads(path.read_text())
    return facts


def differences(facts: Facts, wanted: Facts, packages: Iterable[str] = PACKAGES) -> list[str]:
    """What the file was measured with otherwise than is wanted now; of the versions, those of these packages and of
    what all arms need.
    """
    counting = {*OF_ALL, *packages}
    old, new = ({k: v for k, v in f.get("versions", {}).items() if k in counting} for f in (facts, wanted))
    changed = [key for key, value in wanted.items() if key != "versions" and facts.get(key) != value]
    return changed + [f"{name} ({old.get(name)})" for name in sorted(counting) if old.get(name) != new.get(name)]


class Store:
    """The file at `path`, and its content."""

    path: Path
    facts: Facts

    def __init__(self, path: Path, facts: Facts) -> None:
        self.path, self.facts = path, facts

    def select(self, names: Sequence[str], *, anew: bool = False) -> list[str]:
        """Of the arms asked for, those to go through; they are pending from here on. `anew` drops their old points and
        costs, unless the file waits for some of them: then those go on where they were.
        """
        waiting = [name for name in names if name in self.facts["pending"]]
        if anew and waiting:
            return waiting
        if anew:
            for kind in ("points", "costs"):
                self.facts[kind] = [entry for entry in self.facts[kind] if entry["arm"] not in names]
        self.facts["pending"] += [name for name in names if name not in waiting]
        return list(names)

    def points(self, arm: str) -> list[Point]:
        return [Point(**entry) for entry in self.facts["points"] if entry["arm"] == arm]

    def add(self, entry: Point | Cost) -> None:
        kind = "points" if isinstance(entry, Point) else "costs"
        self.facts[kind].append(json.loads(json.dumps(dataclasses.asdict(entry))))
        self.save()

    def replace(self, point: Point) -> None:
        """In the place of the point of this arm and value."""
        entries = self.facts["points"]
        at = next(i for i, e in enumerate(entries) if (e["arm"], str(e["value"])) == (point.arm, str(point.value)))
        entries[at] = json.loads(json.dumps(dataclasses.asdict(point)))
        self.save()

    def done(self, arm: str, order: Mapping[str, Sequence[Any]]) -> None:
        """The arm has all its points and its cost; arms stand in this order, and their points in that of the values."""
        self.facts["pending"].remove(arm)
        arms = {name: i for i, name in enumerate(order)}
        values = {name: {str(value): i for i, value in enumerate(swept)} for name, swept in order.items()}
        for kind in ("points", "costs"):
            self.facts[kind].sort(
                key=lambda e: (arms.get(e["arm"], len(arms)), values.get(e["arm"], {}).get(str(e["value"]), 0))
            )
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(self.facts, indent=1))
