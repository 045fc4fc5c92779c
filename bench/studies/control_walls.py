"""Is less work on a UNet and its ControlNet as much less time? `python -m dicache.bench.studies.control_walls`

`scenes-unet` with and without control, DDIM and DPM++ 2M, 20 and 50 steps, one thread. Uncached and cached runs take
turns in one process, and of each the least of all turns counts, since whatever else the machine does only adds:

    share = (least uncached seconds / least cached seconds) / (uncached MACs / executed MACs of both networks)

Seconds of the wall, and of the processor, which are the same on a machine that does nothing else, for one thread that
waits for nothing; beside other jobs those of the wall say little.
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import dicache
from dicache.bench.harness.store import RESULTS
from dicache.bench.models.scenes_unet import Solver, draw, edges, pipeline
from dicache.files.atomic import write_text
from dicache.reference.render import render
from dicache.reference.scenes import caption, scenes

SEED, BUDGETS = 47, (0.02, 0.1)
SOLVERS: tuple[Solver, ...] = ("ddim", "dpm++")
STEPS = (20, 50)


@dataclass(frozen=True)
class Row:
    control: bool
    solver: Solver
    steps: int
    budget: float
    work: float
    """Of both networks."""
    speedup: float
    """In multiply-accumulates of both."""
    wall: float
    """Speed-up of the least seconds of the wall."""
    processor: float
    """The same of the processor's."""

    @property
    def shares(self) -> tuple[float, float]:
        return self.wall / self.speedup, self.processor / self.speedup


class Drawing:
    """The same scenes again and again."""

    pipe: Any
    captions: list[str]
    image: Tensor | None
    steps: int

    def __init__(self, control: bool, solver: Solver, steps: int, batch: int) -> None:
        shown = list(itertools.islice(scenes("calibration", seed=SEED), batch))
        self.pipe = pipeline(control=control, solver=solver)
        self.pipe.set_progress_bar_config(disable=True)
        self.captions, self.steps = [caption(scene) for scene in shown], steps
        self.image = edges(render(shown)) if control else None

    def seconds(self, around: AbstractContextManager[Any], runs: int) -> tuple[float, float]:
        """The least of the wall and of the processor."""
        times = []
        with around:
            for _ in range(1 + runs):  # what a first call prepares is not timed
                begun = time.perf_counter(), time.process_time()
                draw(self.pipe, self.captions, self.steps, image=self.image)
                times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        return _least(times[1:])


def _least(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    walls, processors = zip(*times, strict=True)
    return min(walls), min(processors)


def rows(controls: Sequence[bool], steps: Sequence[int], batch: int, turns: int) -> Iterator[Row]:
    for control, solver, length in itertools.product(controls, SOLVERS, steps):
        drawing = Drawing(control, solver, length, batch)
        for budget in BUDGETS:
            uncached, cached = list[tuple[float, float]](), list[tuple[float, float]]()
            for _ in range(turns):
                uncached.append(drawing.seconds(nullcontext(), 1))
                cache = dicache.enable(drawing.pipe, error_budget=budget)
                cached.append(drawing.seconds(cache, 2))
            speedup, wall, processor = cache.report().compute_speedup, *_ratios(_least(uncached), _least(cached))
            yield Row(control, solver, length, budget, 1 / speedup, speedup, wall, processor)


def _ratios(uncached: tuple[float, float], cached: tuple[float, float]) -> tuple[float, float]:
    return uncached[0] / cached[0], uncached[1] / cached[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Is less work on a UNet and its ControlNet as much less time?")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--control", choices=["with", "without", "both"], default="both")
    parser.add_argument("--json", type=Path, default=RESULTS / "control-walls.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console, drawn = Console(width=160), list[Row]()
    controls = {"with": [True], "without": [False], "both": [False, True]}[args.control]
    console.print("control | solver | steps | budget | work | speed-up in MACs | wall | processor | their shares of it")
    for row in rows(controls, args.steps, args.batch, args.turns):
        drawn.append(row)
        numbers = (f"{number:.3f}" for number in (row.work, row.speedup, row.wall, row.processor, *row.shares))
        console.print(row.control, row.solver, row.steps, row.budget, *numbers, sep=" | ", highlight=False)
        write_text(args.json, json.dumps([asdict(each) | {"shares": each.shares} for each in drawn], indent=1) + "\n")


if __name__ == "__main__":
    main()
