"""How far does a denoising step walk through the package? `python -m dicache.bench.studies.step_walk [--files]`

Every denoiser call of an unguided picture of the reference model is watched with `sys.setprofile`: which of dicache's
files it enters, and how often it changes file, which is whenever a Python function of the package is called that lies
in another file than the one of the package that is running (its return is not counted again). What torch and diffusers
do in between is not the package's. A call also learns of the step before, so the row that stands for one step is that
of a computed call after a computed one: a step's whole way, from the call of the denoiser to what is learned of it.

What a reader has to open to follow a step is the first number, how often he loses his place the second.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import dicache
from dicache.reference import pipeline, prompts

PACKAGE = Path(dicache.__file__).resolve().parent
SIBLINGS = ("probes", "estimators", "extension")
"""Folders that are part of the package and lie beside it in a checkout."""
BUDGETS = (0.05, 0.005)
"""Under the first most steps are skipped, under the second most are computed one after another."""
STEPS = 28
STEP = "computed, after a computed step"


class Walk:
    """What one call entered; to be handed to `sys.setprofile`."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.changes: int = 0
        self._running: list[str] = []
        self._names: dict[CodeType, str | None] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event not in ("call", "return"):
            return
        if frame.f_code not in self._names:
            self._names[frame.f_code] = _within_package(frame.f_code.co_filename)
        name = self._names[frame.f_code]
        if name is None:
            return
        if event == "return":
            if self._running:  # the first return is that of what began the watching
                self._running.pop()
            return
        self.files[name] += 1
        self.changes += not self._running or self._running[-1] != name
        self._running.append(name)


def _within_package(filename: str) -> str | None:
    path, checkout = Path(filename).resolve(), PACKAGE.parent
    inside = path.is_relative_to(PACKAGE) or any(path.is_relative_to(checkout / folder) for folder in SIBLINGS)
    return str(path.relative_to(checkout)) if inside else None


@contextmanager
def watched(denoiser: nn.Module) -> Iterator[list[Walk]]:
    """One walk per call of the denoiser, hooks included."""
    walks: list[Walk] = []
    plain: Callable[..., Any] = type(denoiser).__call__

    def call(module: nn.Module, *args: object, **kwargs: object) -> object:
        walk = Walk()
        sys.setprofile(walk)
        try:
            return plain(module, *args, **kwargs)
        finally:
            sys.setprofile(None)
            walks.append(walk)

    denoiser.__class__ = type(type(denoiser).__name__, (type(denoiser),), {"__call__": call})
    try:
        yield walks
    finally:
        denoiser.__class__ = type(denoiser).__bases__[0]


def walks_of(budget: float) -> dict[str, list[Walk]]:
    """One picture's, by what the call did and what the step before it had done; the first two stand for themselves."""
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    caption = str(next(iter(prompts("test", 1))))
    with watched(pipe.transformer) as walks, dicache.enable(pipe, error_budget=budget) as cache:
        options = {"num_inference_steps": STEPS, "true_cfg_scale": 1.0, "output_type": "latent"}
        pipe([caption], generator=[torch.Generator().manual_seed(5)], **options)
        cache.report()
    assert cache.trace is not None
    did = ["skipped" if bool((record.action != 0).all()) else "computed" for record in cache.trace.records]
    kinds: dict[str, list[Walk]] = defaultdict(list)
    for i, walk in enumerate(walks):
        kinds[["the first", "the second"][i] if i < 2 else f"{did[i]}, after a {did[i - 1]} step"].append(walk)
    return kinds


def table(kinds: dict[str, list[Walk]]) -> Table:
    drawn = Table(title=f"One denoiser call of {STEPS}: the most that a call of its kind does")
    for column in ("call", "calls", "files entered", "changes of file"):
        drawn.add_column(column, justify="left" if column == "call" else "right")
    for kind, walks in sorted(kinds.items(), key=lambda entry: entry[0] != STEP):
        files, changes = max(len(walk.files) for walk in walks), max(walk.changes for walk in walks)
        drawn.add_row(kind, str(len(walks)), str(files), str(changes))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description="How far does a denoising step walk through the package?")
    parser.add_argument("--files", action="store_true", help="name the files of a computed step, and how often")
    args = parser.parse_args()
    kinds: dict[str, list[Walk]] = defaultdict(list)
    for budget in BUDGETS:
        for kind, walks in walks_of(budget).items():
            kinds[kind] += walks
    Console().print(table(kinds))
    if args.files:
        for name, calls in sorted(max(kinds[STEP], key=lambda walk: walk.changes).files.items()):
            Console().print(f"{calls:5} {name}", highlight=False)


if __name__ == "__main__":
    main()
