"""Is half the work on a finer grid better than all of it? `python -m dicache.bench.studies.finer_grid [--models REGEX]`

Every model of the zoo at its first setting of N steps, 64 test conditions, held against its limit, 8 N steps:

    uncached     N steps, and half as many by each of its solvers
    default      evaluations=N/2 on grids of 1.5, 2 and 3 N steps
    tuned        a schedule of N/2 computed steps on the same grids, `dicache.tune` on 24 calibration conditions, whose
                 slopes aim at the finer grid's own run

*Nearer* is the share of conditions that are nearer to the limit than the uncached run of N steps. A grid whose steps
cannot be read off its scheduler says why.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from dicache.api import enable
from dicache.bench.harness.store import RESULTS
from dicache.bench.zoo.members import members
from dicache.bench.zoo.model import Setting, draw
from dicache.errors import DicacheError
from dicache.files.atomic import write_text
from dicache.promise.metrics import relative_error
from dicache.tuning.tune import tune

LIMIT, FINER = 8, (1.5, 2.0, 3.0)
CONDITIONS, TUNED_ON = 64, 24


class Row(NamedTuple):
    model: str
    run: str
    steps: int
    evaluations: int
    median: float | None
    """Relative L2 error against the limit; None where it could not be drawn."""
    p90: float | None
    nearer: float | None
    why: str = ""


class Limit:
    """Of one setting: what its runs are held against."""

    def __init__(self, setting: Setting, conditions: int) -> None:
        self.setting = setting
        self.conditions = setting.model.conditions("test", conditions)
        finer = dataclasses.replace(setting, steps=LIMIT * setting.steps)
        self.latents: Tensor = self.drawn(finer)
        self.uncached: Tensor = relative_error(self.drawn(setting), self.latents)

    def drawn(self, setting: Setting, target: Any = None, around: AbstractContextManager[Any] | None = None) -> Tensor:  # noqa: ANN401
        with torch.no_grad(), around or nullcontext():
            return draw(target or setting.model.fresh(setting.solver), self.conditions, setting).latents

    def row(self, run: str, steps: int, evaluations: int, latents: Tensor) -> Row:
        errors = relative_error(latents, self.latents)
        nearer = float((errors < self.uncached).double().mean())
        return Row(
            self.setting.name, run, steps, evaluations, float(errors.median()), float(errors.quantile(0.9)), nearer
        )


def rows(setting: Setting, conditions: int = CONDITIONS, finer: Sequence[float] = FINER) -> Iterator[Row]:
    limit, steps, half = Limit(setting, conditions), setting.steps, setting.steps // 2
    errors = limit.uncached
    yield Row(setting.name, "uncached", steps, steps, float(errors.median()), float(errors.quantile(0.9)), None)
    for solver in dict.fromkeys((setting.solver, *setting.model.solvers)):
        few = dataclasses.replace(setting, solver=solver, steps=half)
        yield limit.row(f"uncached, {solver}", half, half, limit.drawn(few))
    for grid in (dataclasses.replace(setting, steps=round(k * steps)) for k in finer):
        for run, around in (("default", _default), ("tuned", _tuned)):
            target = setting.model.fresh(setting.solver)
            try:
                yield limit.row(run, grid.steps, half, limit.drawn(grid, target, around(target, grid, half)))
            except DicacheError as error:
                yield Row(setting.name, run, grid.steps, half, None, None, None, str(error))


def _default(target: Any, grid: Setting, evaluations: int) -> AbstractContextManager[Any]:  # noqa: ANN401
    return enable(target, evaluations=evaluations)


def _tuned(target: Any, grid: Setting, evaluations: int) -> AbstractContextManager[Any]:  # noqa: ANN401
    model = grid.model
    schedule = tune(
        model.fresh(grid.solver),
        model.conditions("calibration", TUNED_ON, seed=12),
        steps=grid.steps,
        speedup=grid.steps / (evaluations + 0.1),
        seed=12_000,
        batch=TUNED_ON,
        call=model.call(),
        progress=False,
    )
    return enable(target, schedule=schedule)


def words(row: Row) -> str:
    errors = row.why if row.median is None else f"{row.median:.4f} | {row.p90:.4f}"
    nearer = "-" if row.nearer is None else f"{row.nearer:.0%}"
    return f"{row.model} | {row.run} | {row.steps} | {row.evaluations} | {errors} | {nearer}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Is half the work on a finer grid better than all of it?")
    parser.add_argument("--models", metavar="REGEX", default="")
    parser.add_argument("--conditions", type=int, default=CONDITIONS)
    parser.add_argument("--json", type=Path, default=RESULTS / "finer-grid.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=200, highlight=False)
    before = json.loads(args.json.read_text()) if args.json.exists() else []
    for model in members():
        if model.missing() or not re.search(args.models, model.name):
            continue
        setting, drawn = Setting(model, model.solvers[0], model.grids[0]), []
        for row in rows(setting, args.conditions):
            console.print(words(row), soft_wrap=True)
            drawn.append(row._asdict())
        before = [row for row in before if row["model"] != setting.name] + drawn
        write_text(args.json, json.dumps(before, indent=1) + "\n")


if __name__ == "__main__":
    main()
