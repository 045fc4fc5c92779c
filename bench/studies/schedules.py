"""What every finder finds, at equal executed work. `python -m dicache.bench schedules --steps 20`

Found on calibration captions, held against uncached runs of the same seeds on test captions. Four questions more:
does evolution improve on the schedules it was seeded with, does a router beat chance and its paper's own loss, what
does one nested order for all budgets lose against a search for each, and is it worth deciding the edges of gaps per
sample.

A row is written as soon as it is measured: interrupted, the same command goes on there.
"""

import argparse
import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline

from dicache.api import enable
from dicache.bench.arms.finders import (
    ALONE,
    ANNEALING,
    COSTS,
    ECAD,
    NESTED,
    ORDER,
    ROUTED,
    ROUTER,
    Request,
    requests,
)
from dicache.bench.arms.ours import FITTED_ON, multistep
from dicache.bench.harness.store import RESULTS
from dicache.bench.models.reference import Drawn, Setting, draw, fresh
from dicache.bench.showing.schedule_tables import Row, show
from dicache.files.atomic import write_text
from dicache.finders.base import Finder
from dicache.finders.block_caching import BlockCaching
from dicache.finders.ecad import Ecad
from dicache.finders.learning_to_cache import ranked
from dicache.finders.multistep import Multistep
from dicache.measuring.schedule_measurements import Calibration, ScheduleMeasurements
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts
from dicache.regressions.fit_coefficients import fit
from dicache.schedules.action_table import Table, computes
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Schedule
from dicache.schedules.setting import Dynamic
from dicache.sites import Evaluation, Sites, Spans
from dicache.types import Action

EVALUATION = Evaluation()
GUIDANCE = 3.5
CHANCE = 3
"""Random schedules that a router is held against."""
SEEDS = 3
"""Evolution, the nested order and routers are repeated, each time on other calibration captions."""


class Trial:
    """One setting: the calibration captions that schedules are found on, and the test captions that tell what they
    are worth.
    """

    captions: list[str]
    pipe: FluxPipeline

    def __init__(self, steps: int, captions: int, calibration_captions: int) -> None:
        self.setting: Setting = Setting(steps=steps, guidance=GUIDANCE)
        self.captions, self.pipe = prompts("test", captions, seed=0), fresh(self.setting)
        self.calibration_captions = calibration_captions
        self.calibration: Calibration = self._calibration(0)
        self.reference: Drawn = draw(self.pipe, self.captions, self.setting)

    def _calibration(self, seed: int) -> Calibration:
        call = {"negative_prompt": "", "true_cfg_scale": GUIDANCE}
        captions = prompts("calibration", self.calibration_captions, seed=12 + seed)
        return Calibration(captions, self.setting.steps, seed=12_000 + 100 * seed, call=call)

    def seeded(self, seed: int) -> "Trial":
        """The same with other calibration captions."""
        other = copy.copy(self)
        other.calibration = self._calibration(seed)
        return other

    def find(self, finder: Finder, cost: float, sites: Sites = EVALUATION, seed: int = 0) -> Schedule:
        schedule = finder.find(self.pipe, sites, self.calibration, cost=cost, seed=seed)
        assert isinstance(schedule, Schedule)
        return schedule

    def front(self, finder: Finder, sites: Sites = EVALUATION, seed: int = 0) -> ParetoSet:
        schedules = finder.find(self.pipe, sites, self.calibration, seed=seed)
        assert isinstance(schedules, ParetoSet)
        return schedules

    def row(self, name: str, cost: float, schedule: Schedule, **more: float) -> Row:
        """Work that was really executed, and errors on the test captions."""
        with torch.no_grad(), enable(self.pipe, schedule=schedule):
            drawn = draw(self.pipe, self.captions, self.setting)
        errors = relative_error(drawn.latents, self.reference.latents).tolist()
        facts = {"work": drawn.macs / self.reference.macs, "calibration": schedule.error, "errors": errors}
        return {"name": name, "cost": cost, **more, **facts}

    def measurements(self, sites: Sites) -> ScheduleMeasurements:
        return self.calibration.on(self.pipe, sites)


def questions(trial: Trial) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """All that is measured, a few rows at a time, by name."""
    for request in (*requests(), Request("multistep", Multistep(), EVALUATION)):
        yield request.name, partial(_requested, trial, request)
    yield f"multistep, {FITTED_ON} captions", partial(_multistep, trial)
    yield "scale and shift", partial(_corrected, trial)
    yield "dynamic", partial(_dynamic, trial)
    for seed in range(SEEDS):
        other = trial.seeded(seed)
        yield f"nested, seed {seed}", partial(_nested, other, seed)
        yield f"evolution, seed {seed}", partial(_evolved, other, seed)
        yield f"evolution of blocks, seed {seed}", partial(_evolved, other, seed, Spans(), Ecad())
        yield f"routers, seed {seed}", partial(_routers, other, seed)


def _requested(trial: Trial, request: Request) -> list[Row]:
    rows = []
    for cost in request.costs:
        started = perf_counter()
        schedule = trial.find(request.finder, cost, request.sites)
        rows.append(trial.row(request.name, cost, schedule, seconds=perf_counter() - started))
    return rows


def _multistep(trial: Trial) -> list[Row]:
    """As the arm of the other studies is found."""
    name = f"multistep, {FITTED_ON} captions"
    return [trial.row(name, cost, multistep(trial.setting, cost)) for cost in COSTS]


def _corrected(trial: Trial) -> list[Row]:
    """Block Caching on blocks, with and without its scale and shift."""
    fitted = fit(
        trial.pipe,
        prompts("calibration", 8, seed=13),
        steps=trial.setting.steps,
        kind="scale_shift",
        progress=False,
        negative_prompt="",
        true_cfg_scale=GUIDANCE,
    )
    plain = trial.find(BlockCaching(), COSTS[0], Spans())
    table = np.where(computes(plain.table), Action.COMPUTE, Action.CORRECT).astype(np.uint8)
    corrected = replace(plain, table=table, fitted=fitted, error=None)
    return [trial.row("Block Caching, blocks, scale and shift", COSTS[0], corrected)]


def _evolved(trial: Trial, seed: int, sites: Sites = EVALUATION, finder: Ecad = ECAD) -> list[Row]:
    """Hypervolumes on the calibration captions, reference point (1, 1)."""
    measurements = trial.measurements(sites)
    seeds = tuple(finder.schedules(measurements, finder.first(measurements, seed), seed))
    rows: list[Row] = [{"name": "the seeds of ECAD", "hypervolume": _volume(seeds)}]
    for name, evolution in (("seeded ECAD", finder), ("ECAD from chance", replace(finder, seeded=False))):
        front = trial.front(evolution, sites, seed).members
        better = [any(s.work <= seed.work and s.error <= seed.error for s in front) for seed in seeds]  # type: ignore[operator]
        rows.append({"name": name, "hypervolume": _volume(front), "dominates": float(np.mean(better))})
    return rows


def _volume(schedules: tuple[Schedule, ...]) -> float:
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=[1.0, 1.0])(np.array([[s.error, s.work] for s in schedules])))


def _nested(trial: Trial, seed: int) -> list[Row]:
    """One order for all budgets, and what was searched for each alone."""
    order, rows = trial.front(replace(ORDER, least=min(NESTED) - 0.01)), []
    for cost in NESTED:
        alone = [trial.find(finder, cost, seed=seed) for finder in ALONE.values()]
        for name, schedule in zip(("nested", *ALONE), (order.at(cost), *alone), strict=True):
            rows.append(trial.row(name, cost, schedule))
    return rows


def _routers(trial: Trial, seed: int) -> list[Row]:
    """Trained scores on blocks against those of chance, of time alone and of the paper's loss, at equal work."""
    measurements, rows = trial.measurements(Spans()), []
    steps, sites = measurements.basis.shape
    rng, late = np.random.default_rng(seed), np.linspace(1, 0, steps)[:, None] * np.ones(sites)
    scores = {
        f"router, {space}": replace(ROUTER, space=space).scores(measurements, None, seed) for space in ("x", "eps")
    }  # type: ignore[arg-type]
    scores |= {"late steps first": late, "early steps first": 1 - late}
    scores |= {f"chance {k}": rng.uniform(size=(steps, sites)) for k in range(CHANCE)}
    for cost in ROUTED:
        for name, score in scores.items():
            schedule = ROUTER.schedules(measurements, [_at(measurements, score, cost)], 0)[0]
            rows.append(trial.row(name, cost, schedule))
    return rows


def _at(measurements: ScheduleMeasurements, scores: np.ndarray, cost: float) -> Table:
    family = [measurements.filled(mask) for mask in ranked(scores)]
    work = measurements.basis.work(np.stack(family))
    return family[int(np.flatnonzero(work <= cost + 1e-9)[0])]


def _dynamic(trial: Trial) -> list[Row]:
    """The best static schedule, and the same with the edges of its gaps decided per sample, at equal mean work."""
    measurements, rows = trial.measurements(EVALUATION), []
    for cost in COSTS:
        static = trial.find(ANNEALING, cost)
        rows.append(trial.row("static", cost, static))
        limit, dynamic = _dynamic_like(measurements, static)
        rows.append(trial.row("its edges per sample", cost, dynamic, limit=limit))
    return rows


def _dynamic_like(measurements: ScheduleMeasurements, static: Schedule) -> tuple[float, Schedule]:
    """By bisection of the limit: the last one tried, and its schedule."""
    table, low, high = edges(static.table), 1e-5, 1.0
    for _ in range(9):
        limit = float(np.sqrt(low * high))
        schedule = replace(static, table=table, dynamic=Dynamic(limit, 8), error=None)
        low, high = (low, limit) if _mean_work(measurements, schedule) < static.work else (limit, high)
    return limit, schedule


def edges(table: Table) -> Table:
    """With the last skipped step of every gap, and the computed one that ends it, left open."""
    done, opened = computes(table)[:, 0], table.copy()
    for t in range(3, len(table)):
        if done[t] and not done[t - 1]:
            opened[t - 1 : t + 1] = Action.DYNAMIC
    return opened


def _mean_work(measurements: ScheduleMeasurements, schedule: Schedule) -> float:
    """On the calibration captions."""
    executed = 0.0
    for start in range(0, measurements.prompts, measurements.calibration.batch):
        with enable(measurements.pipe, schedule=schedule) as cache:
            measurements.drawer.draw(range(measurements.prompts)[start : start + measurements.calibration.batch])
        assert cache.trace is not None
        executed += float(cache.trace.executed.sum())
    return executed / measurements.prompts / measurements.basis.uncached


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--captions", type=int, default=8, help="test captions")
    parser.add_argument("--found-on", type=int, default=3, help="calibration captions")
    parser.add_argument("--rows", default="", metavar="REGEX", help="measure only these, such as 'evolution, seed 0'")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--show", action="store_true", help="print what the file holds, measure nothing")


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    path: Path = args.out / f"schedules-{args.steps}.json"
    if args.show and not path.is_file():
        raise SystemExit(f"{path} does not exist: there is nothing to show. Measure first, without --show.")
    drawn = {"steps": args.steps, "captions": args.captions, "found_on": args.found_on}
    facts = json.loads(path.read_text()) if path.is_file() else {"drawn": drawn, "measured": {}}
    if not args.show:
        if facts["drawn"] != drawn:
            raise SystemExit(f"{path} was measured with {facts['drawn']}: delete it, or give the same.")
        _measure(path, facts, args)
    show(facts["measured"].values())


def _measure(path: Path, facts: dict[str, Any], args: argparse.Namespace) -> None:
    """What is missing of the rows that are asked for, written as soon as it is measured."""
    every = dict(questions(Trial(args.steps, args.captions, args.found_on)))
    if not any(re.search(args.rows, name) for name in every):
        raise SystemExit(f"no row matches {args.rows!r}. There are: {'; '.join(every)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, answer in every.items():
        if name in facts["measured"] or not re.search(args.rows, name):
            continue
        facts["measured"][name] = answer()
        write_text(path, json.dumps(facts, indent=1) + "\n")
        show([facts["measured"][name]])
