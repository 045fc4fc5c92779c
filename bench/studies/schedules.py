"""What every finder finds, at equal executed work. `python -m dicache.bench schedules --steps 20`

Found on calibration captions, judged on test captions against uncached runs of the same seeds. Four questions more:
does evolution improve on the schedules it was seeded with, does a router beat chance and its paper's own loss, what
does one nested order for all budgets lose against a search for each, and is it worth deciding the edges of gaps per
sample.

A row is kept as soon as it is measured: interrupted, the same command goes on there.
"""

import argparse
import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as Shown

from dicache.api import enable
from dicache.bench.arms.arm import Setting
from dicache.bench.arms.ours import FITTED_ON, multistep
from dicache.bench.harness.measure import draw, fresh
from dicache.finders.annealing import Annealing
from dicache.finders.base import Finder
from dicache.finders.block_caching import BlockCaching
from dicache.finders.dynamic_programming import DynamicProgramming
from dicache.finders.ecad import Ecad
from dicache.finders.fixed import FixedInterval
from dicache.finders.invardiff import InvarDiff
from dicache.finders.law_plan import Law
from dicache.finders.learning_to_cache import LearningToCache, ranked
from dicache.finders.multistep import Multistep
from dicache.finders.nested import Nested
from dicache.finders.smoothcache import SmoothCache
from dicache.measuring.fit_coefficients import fit
from dicache.measuring.schedule_measurements import Calibration, ScheduleMeasurements
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts
from dicache.schedules.action_table import Table, computes
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Schedule
from dicache.schedules.setting import Dynamic
from dicache.sites import Evaluation, Sites, Spans, Sublayers
from dicache.types import Action

LINE = Action.EXTRAPOLATE
COSTS = (0.51, 0.36)
"""Half and a third of the steps, and what runs around the blocks at every step."""
GUIDANCE = 3.5
ANNEALING = Annealing(trials=40, rounds=0, fill=LINE)
WHOLE = Evaluation()
ECAD = Ecad(generations=10, population=12, fill=LINE)
ORDER = Nested(fill=LINE)
ALONE: dict[str, Finder] = {"optimal, line": DynamicProgramming(fill=LINE), "annealing, line": ANNEALING}
ROUTER = LearningToCache(iterations=2)
ROUTED = (0.8, 0.66, 0.55)
CHANCE = 3
"""Random schedules that a router is held against."""
NESTED = (0.8, 0.6, 0.4)
SEEDS = 3
"""Evolution, the nested order and routers are repeated, each time on other calibration captions."""


@dataclass(frozen=True)
class Asked:
    name: str
    finder: Finder
    sites: Sites
    costs: tuple[float, ...] = COSTS


def asked() -> list[Asked]:
    whole: list[tuple[str, Finder]] = [
        ("fixed interval", FixedInterval()),
        ("fixed interval, line", FixedInterval(LINE)),
        ("SmoothCache", SmoothCache()),
        ("SmoothCache, line", SmoothCache(fill=LINE)),
        ("Block Caching", BlockCaching()),
        ("InvarDiff", InvarDiff()),
        ("optimal, unweighted", DynamicProgramming(weighted=False)),
        ("optimal", DynamicProgramming()),
        ("optimal, line", DynamicProgramming(fill=LINE)),
        ("the law's way, line", Law()),
        ("nested, line", ORDER),
        ("annealing, line", ANNEALING),
        ("ECAD, line", ECAD),
    ]
    return [Asked(name, finder, Evaluation()) for name, finder in whole] + [
        Asked("nested by the law, line", replace(ORDER, prices="law"), Evaluation(), (*NESTED, *COSTS)),
        Asked("fixed interval, sublayers", FixedInterval(), Sublayers(), (0.7,)),
        Asked("SmoothCache, sublayers", SmoothCache(), Sublayers(), (0.7,)),
        Asked("Block Caching, blocks", BlockCaching(), Spans(), (0.51,)),
    ]


class Bench:
    """One setting: where schedules are found and where they are judged."""

    def __init__(self, steps: int, captions: int, found_on: int) -> None:
        self.setting = Setting(steps=steps, guidance=GUIDANCE)
        self.captions, self.pipe = prompts("test", captions, seed=0), fresh(self.setting)
        self.found_on, self.calibration = found_on, self.calibrated(found_on, 0)
        self.reference = draw(self.pipe, self.captions, self.setting)

    def calibrated(self, found_on: int, seed: int) -> Calibration:
        call = {"negative_prompt": "", "true_cfg_scale": GUIDANCE}
        captions = prompts("calibration", found_on, seed=12 + seed)
        return Calibration(captions, self.setting.steps, seed=12_000 + 100 * seed, call=call)

    def seeded(self, seed: int) -> "Bench":
        """The same with other calibration captions."""
        other = copy.copy(self)
        other.calibration = self.calibrated(self.found_on, seed)
        return other

    def judged(self, found: Schedule) -> dict[str, Any]:
        """Work that was really executed, and errors on the test captions."""
        with torch.no_grad(), enable(self.pipe, schedule=found):
            drawn = draw(self.pipe, self.captions, self.setting)
        errors = relative_error(drawn.latents, self.reference.latents).tolist()
        return {"work": drawn.macs / self.reference.macs, "calibration": found.error, "errors": errors}

    def measurements(self, sites: Sites) -> ScheduleMeasurements:
        return self.calibration.on(self.pipe, sites)


def rows(bench: Bench, keep: Callable[[str, Callable[[], list[dict[str, Any]]]], None]) -> None:
    """All that is measured, a few rows at a time."""
    for one in asked():
        keep(one.name, lambda one=one: _found(bench, one))  # type: ignore[misc]
    keep("multistep", lambda: _found(bench, Asked("multistep", Multistep(), WHOLE)))
    keep(f"multistep, {FITTED_ON} captions", lambda: _multistep(bench))
    keep("scale and shift", lambda: _corrected(bench))
    keep("dynamic", lambda: _dynamic(bench))
    for seed in range(SEEDS):
        other = bench.seeded(seed)
        keep(f"nested, seed {seed}", lambda other=other, seed=seed: _nested(other, seed))  # type: ignore[misc]
        keep(f"evolution, seed {seed}", lambda other=other, seed=seed: _evolved(other, seed))  # type: ignore[misc]
        keep(
            f"evolution of blocks, seed {seed}",
            lambda other=other, seed=seed: _evolved(other, seed, Spans(), Ecad()),  # type: ignore[misc]
        )
        keep(f"routers, seed {seed}", lambda other=other, seed=seed: _routers(other, seed))  # type: ignore[misc]


def _found(bench: Bench, one: Asked) -> list[dict[str, Any]]:
    made = []
    for cost in one.costs:
        started = perf_counter()
        found = one.finder.find(bench.pipe, one.sites, bench.calibration, cost=cost)
        assert isinstance(found, Schedule)
        made.append({"name": one.name, "cost": cost, "seconds": perf_counter() - started, **bench.judged(found)})
    return made


def _multistep(bench: Bench) -> list[dict[str, Any]]:
    """As the arm of the other benches is found."""
    found = [(cost, multistep(bench.setting, cost)) for cost in COSTS]
    return [{"name": f"multistep, {FITTED_ON} captions", "cost": cost, **bench.judged(s)} for cost, s in found]


def _corrected(bench: Bench) -> list[dict[str, Any]]:
    """Block Caching on blocks, with and without its scale and shift."""
    fitted = fit(
        bench.pipe,
        prompts("calibration", 8, seed=13),
        steps=bench.setting.steps,
        kind="scale_shift",
        progress=False,
        negative_prompt="",
        true_cfg_scale=GUIDANCE,
    )
    plain = BlockCaching().find(bench.pipe, Spans(), bench.calibration, cost=COSTS[0])
    assert isinstance(plain, Schedule)
    table = np.where(computes(plain.table), Action.COMPUTE, Action.CORRECT).astype(np.uint8)
    moved = replace(plain, table=table, fitted=fitted, error=None)
    return [{"name": "Block Caching, blocks, scale and shift", "cost": COSTS[0], **bench.judged(moved)}]


def _evolved(bench: Bench, seed: int, sites: Sites = WHOLE, finder: Ecad = ECAD) -> list[dict[str, Any]]:
    """Hypervolumes on the calibration captions, reference point (1, 1)."""
    from pymoo.indicators.hv import HV

    def volume(schedules: tuple[Schedule, ...]) -> float:
        return float(HV(ref_point=[1.0, 1.0])(np.array([[s.error, s.work] for s in schedules])))

    measurements = bench.measurements(sites)
    seeds = tuple(finder.schedules(measurements, finder.first(measurements, seed), seed))
    made = [{"name": "the seeds of ECAD", "hypervolume": volume(seeds)}]
    for name, evolved in (("seeded ECAD", finder), ("ECAD from chance", replace(finder, seeded=False))):
        front = evolved.find(bench.pipe, sites, bench.calibration, seed=seed)
        assert isinstance(front, ParetoSet)
        better = [any(s.work <= seed.work and s.error <= seed.error for s in front.members) for seed in seeds]  # type: ignore[operator]
        made.append({"name": name, "hypervolume": volume(front.members), "dominates": float(np.mean(better))})
    return made


def _nested(bench: Bench, seed: int) -> list[dict[str, Any]]:
    """One order for all budgets, and what was searched for each alone."""
    order, made = replace(ORDER, least=min(NESTED) - 0.01).find(bench.pipe, Evaluation(), bench.calibration), []
    assert isinstance(order, ParetoSet)
    for cost in NESTED:
        alone = [f.find(bench.pipe, Evaluation(), bench.calibration, cost=cost, seed=seed) for f in ALONE.values()]
        for name, found in zip(("nested", *ALONE), (order.at(cost), *alone), strict=True):
            assert isinstance(found, Schedule)
            made.append({"name": name, "cost": cost, **bench.judged(found)})
    return made


def _routers(bench: Bench, seed: int) -> list[dict[str, Any]]:
    """Learned scores on blocks against those of chance, of time alone and of the paper's loss, at equal work."""
    measurements, made = bench.measurements(Spans()), []
    steps, sites = measurements.basis.shape
    rng, late = np.random.default_rng(seed), np.linspace(1, 0, steps)[:, None] * np.ones(sites)
    scores = {
        f"router, {space}": replace(ROUTER, space=space).scores(measurements, None, seed) for space in ("x", "eps")
    }  # type: ignore[arg-type]
    scores |= {"late steps first": late, "early steps first": 1 - late}
    scores |= {f"chance {k}": rng.uniform(size=(steps, sites)) for k in range(CHANCE)}
    for cost in ROUTED:
        for name, score in scores.items():
            table = _at(measurements, score, cost)
            found = ROUTER.schedules(measurements, [table], 0)[0]
            made.append({"name": name, "cost": cost, **bench.judged(found)})
    return made


def _at(measurements: ScheduleMeasurements, scores: np.ndarray, cost: float) -> Table:
    family = [measurements.filled(mask) for mask in ranked(scores)]
    work = measurements.basis.work(np.stack(family))
    return family[int(np.flatnonzero(work <= cost + 1e-9)[0])]


def _dynamic(bench: Bench) -> list[dict[str, Any]]:
    """The best static schedule, and the same with the edges of its gaps decided per sample, at equal mean work."""
    measurements, made = bench.measurements(Evaluation()), []
    for cost in COSTS:
        static = ANNEALING.find(bench.pipe, Evaluation(), bench.calibration, cost=cost)
        assert isinstance(static, Schedule)
        made.append({"name": "static", "cost": cost, **bench.judged(static)})
        table = edges(static.table)
        low, high = 1e-5, 1.0
        for _ in range(9):
            limit = float(np.sqrt(low * high))
            found = replace(static, table=table, dynamic=Dynamic(limit, 8), error=None)
            low, high = (low, limit) if _mean_work(measurements, found) < static.work else (limit, high)
        made.append({"name": "its edges per sample", "cost": cost, "limit": limit, **bench.judged(found)})
    return made


def edges(table: Table) -> Table:
    """With the last skipped step of every gap, and the computed one that ends it, left open."""
    done, opened = computes(table)[:, 0], table.copy()
    for t in range(3, len(table)):
        if done[t] and not done[t - 1]:
            opened[t - 1 : t + 1] = Action.DYNAMIC
    return opened


def _mean_work(measurements: ScheduleMeasurements, found: Schedule) -> float:
    """On the calibration captions."""
    executed = 0.0
    for start in range(0, measurements.prompts, measurements.calibration.batch):
        with enable(measurements.pipe, schedule=found) as cache:
            measurements.drawer.draw(range(measurements.prompts)[start : start + measurements.calibration.batch])
        assert cache.trace is not None
        executed += float(cache.trace.executed.sum())
    return executed / measurements.prompts / measurements.basis.uncached


def show(measured: dict[str, list[dict[str, Any]]]) -> None:
    table = Shown("schedule", "asked", "work", "median error", "mean", "90th pct", "on calibration captions")
    for row in (row for group in measured.values() for row in group):
        if "errors" not in row:
            share = f", of the seeds it beats {row['dominates']:.0%}" if "dominates" in row else ""
            table.add_row(row["name"], "", f"hypervolume {row['hypervolume']:.4f}{share}")
            continue
        e, on = np.array(row["errors"]), row["calibration"]
        numbers = (f"{np.median(e):.4f}", f"{e.mean():.4f}", f"{np.quantile(e, 0.9):.4f}")
        table.add_row(
            row["name"], f"{row['cost']:g}", f"{row['work']:.4f}", *numbers, "-" if on is None else f"{on:.4f}"
        )
    Console(width=140).print(table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--captions", type=int, default=8, help="to judge on")
    parser.add_argument("--found-on", type=int, default=3, help="calibration captions")
    parser.add_argument("--rows", default="", metavar="REGEX", help="measure only these, such as 'evolution, seed 0'")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results", help="folder for the JSON file"
    )
    parser.add_argument("--show", action="store_true", help="print what the file holds, measure nothing")


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    path: Path = args.out / f"schedules-{args.steps}.json"
    if args.show and not path.is_file():
        raise SystemExit(f"{path} does not exist: there is nothing to show. Measure first, without --show.")
    drawn = {"steps": args.steps, "captions": args.captions, "found_on": args.found_on}
    held = json.loads(path.read_text()) if path.is_file() else {"drawn": drawn, "measured": {}}
    if not args.show:
        if held["drawn"] != drawn:
            raise SystemExit(f"{path} was measured with {held['drawn']}: delete it, or give the same.")
        args.out.mkdir(parents=True, exist_ok=True)
        bench, names = Bench(args.steps, args.captions, args.found_on), []

        def keep(name: str, make: Callable[[], list[dict[str, Any]]]) -> None:
            names.append(name)
            if name not in held["measured"] and re.search(args.rows, name):
                held["measured"][name] = make()
                part = path.with_suffix(".part")
                part.write_text(json.dumps(held, indent=1) + "\n")
                part.replace(path)
                show({name: held["measured"][name]})

        rows(bench, keep)
        if not any(re.search(args.rows, name) for name in names):
            raise SystemExit(f"no row matches {args.rows!r}. There are: {'; '.join(names)}.")
    show(held["measured"])
