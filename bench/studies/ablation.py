"""What each ingredient of the default is worth, by taking it away: `python -m dicache.bench ablation`

Every variant is swept over its budget on calibration captions, at 20 and 28 steps, on an even time grid and on one that
is bent towards high noise; its median error is read off at equal executed work. Values above the default's say what the
ingredient was worth.

`--held-out` holds the default against fixed intervals, each at its best warm-up, against the preset that did best and
against the same plan without budgets, on test captions that nothing else was measured on: eight captions tell variants
apart, and are too few to say how far apart they are.

What was measured is written setting by setting: interrupted, the same command goes on there.
"""

import argparse
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from rich.console import Console
from rich.progress import Progress

from dicache.api import enable
from dicache.approximators.alignment import Align
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.noise import ExtrapolateNoise
from dicache.bench.arms.arm import Arm
from dicache.bench.arms.ours import multistep
from dicache.bench.arms.presets import PRESETS
from dicache.bench.harness.curves import curves
from dicache.bench.harness.measure import Comparison
from dicache.bench.harness.store import RESULTS, Facts
from dicache.bench.models.reference import Setting
from dicache.bench.showing.tables import markdown
from dicache.config import Config
from dicache.controllers.base import Controller
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.clip import Clip
from dicache.controllers.counted import Counted
from dicache.controllers.fixed import every
from dicache.controllers.planned import Planned
from dicache.estimators.amplitude import Amplitude
from dicache.estimators.closed_loop import ClosedLoop
from dicache.files.atomic import write_text
from dicache.probes.first_blocks import FirstBlocks
from dicache.reference.scenes import Split, prompts
from dicache.sites import Branches, Evaluation, Sites, Spans, Sublayers, Tail
from dicache.types import Decision, Quote, Rows, Step

SETTINGS = tuple(Setting(steps, shift=shift) for steps in (28, 20) for shift in (1.0, 3.0))
WORK = (0.5, 0.35)
BUDGETS = (0.006, 0.012, 0.03, 0.07, 0.15)
SMALL = (0.003, 0.01, 0.03, 0.1)
"""For sites below the evaluation, whose share in the stream underrates what they do to the output."""
RESULT = RESULTS / "ablation.json"
HELD_OUT = RESULT.with_name("held-out.json")
SEEDS = {"calibration": 3, "test": 60}


@dataclass(frozen=True)
class Unweighted(Controller[Any]):
    """Steps count alike, whatever the solver makes of their outputs."""

    inner: Planned

    def init(self, samples: int) -> Any:  # noqa: ANN401
        return self.inner.init(samples)

    def decide(self, quote: Quote, step: Step, state: Any) -> tuple[Decision, Any]:  # noqa: ANN401
        if step.timetable is None:
            return self.inner.decide(quote, step, state)
        flat = sum(step.timetable.coefficients) / len(step.timetable.coefficients)
        timetable = step.timetable._replace(coefficients=(flat,) * len(step.timetable.coefficients))
        cost = quote.cost * flat / step.coefficient
        return self.inner.decide(quote._replace(cost=cost), step._replace(coefficient=flat, timetable=timetable), state)

    def settle(self, ratio: Rows, computed: Rows, state: Any) -> Any:  # noqa: ANN401
        return self.inner.settle(ratio, computed, state)


VARIANTS: dict[str, Callable[[float], Config]] = {
    "the default": lambda b: Config(Planned(b)),
    "no plain reuse for long gaps": lambda b: Config(
        Planned(b), approximators=(ExtrapolateNoise(), ExtrapolateNoise(math.inf))
    ),
    "no plan: spend what was released": lambda b: Config(Clip(Budgeted(b), last=1)),
    "the last observation, not their mean": lambda b: Config(Planned(b), estimator=ClosedLoop()),
    "velocity, not noise": lambda b: Config(Planned(b), approximators=(Extrapolate(),)),
    "only a memory that fades": lambda b: Config(Planned(b), approximators=(ExtrapolateNoise(),)),
    "only a memory that does not": lambda b: Config(Planned(b), approximators=(ExtrapolateNoise(math.inf),)),
    "only plain reuse": lambda b: Config(Planned(b), approximators=(Reuse(),)),
    "the last step not forced": lambda b: Config(Planned(b, last=0)),
    "errors made in noise are not forgotten": lambda b: Config(Planned(b, decay=0.0)),
    "every sample near the law": lambda b: Config(Planned(b), estimator=Amplitude(chance=0.999)),
    "a first-block probe corrects the estimate": lambda b: Config(
        Planned(b), estimator=ClosedLoop(trust=0.5), probe=FirstBlocks()
    ),
    "steps not weighted by the solver": lambda b: Config(Unweighted(Planned(b))),
    "closed loop, probe, alignment (as before the plan)": lambda b: Config(
        Clip(Budgeted(b)),
        estimator=ClosedLoop(trust=0.5),
        approximators=(Reuse(), Extrapolate(), Align()),
        probe=FirstBlocks(),
    ),
}


SITES: dict[str, Callable[[float], Config]] = {
    "sites: the tail, head fresh": lambda b: Config(Planned(b), sites=Tail()),
    "sites: groups of 5 blocks": lambda b: Config(Planned(b), sites=Spans(5)),
    "sites: single blocks": lambda b: Config(Planned(b), sites=Spans()),
    "sites: sublayers": lambda b: Config(Planned(b), sites=Sublayers()),
    "sites: the unconditional branch": lambda b: Config(Planned(b), sites=Branches()),
}


def _variant(name: str) -> Arm:
    @contextmanager
    def prepare(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
        with enable(pipe, config=(VARIANTS | SITES)[name](value)):
            yield setting

    return Arm(name, "dicache", "error_budget", SMALL if name in SITES else BUDGETS, prepare)


def _interval(name: str, approximator: Reuse | Extrapolate, first: float, last: int, sites: Sites | None = None) -> Arm:
    @contextmanager
    def prepare(pipe: FluxPipeline, value: int, setting: Setting) -> Iterator[Setting]:
        schedule = every(value, setting.steps, first=first, last=last)
        with enable(pipe, config=Config(schedule, approximators=(approximator,), sites=sites or Evaluation())):
            yield setting

    return Arm(f"{name}, first {first:g}", "baseline", "interval", (2, 3, 4, 5), prepare)


def intervals(*firsts: float) -> list[Arm]:
    """Fixed intervals after these warm-ups."""
    return [
        _interval(f"fixed interval{' and last step' if last else ''}, {name}", approximator, first, last)
        for name, approximator in (("reuse", Reuse()), ("order 1", Extrapolate()))
        for last in (0, 1)
        for first in firsts
    ]


def arms() -> list[Arm]:
    parts = [
        _interval(f"fixed interval and last step, order 1, {name}", Extrapolate(), 0.1, 1, sites)
        for name, sites in (("tail", Tail()), ("single blocks", Spans()), ("sublayers", Sublayers()))
    ]
    return [*map(_variant, VARIANTS | SITES), *intervals(0.1, 0.2), *parts]


def held_out() -> list[Arm]:
    """A few values each, around half and a third of the work."""

    @contextmanager
    def prepare(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
        with enable(pipe, config=Config(Counted(value))):
            yield setting

    @contextmanager
    def fitted(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
        with enable(pipe, schedule=multistep(setting, value)):
            yield setting

    teacache = next(arm for arm in PRESETS if arm.name == "preset teacache")
    return [
        _variant("the default"),
        Arm("the same plan for all captions", "dicache", "speedup", (1.85, 2.05, 2.5, 3.0), prepare),
        Arm("the same way, slopes fitted along it", "dicache", "cost", (0.56, 0.51, 0.43, 0.36, 0.33), fitted),
        replace(teacache, values=(0.25, 0.4, 0.6, 0.9)),
        *(replace(arm, values=(2, 3, 4)) for arm in intervals(0.0, 0.1)),
    ]


def measure(swept: list[Arm], captions: list[str], before: list[Facts], progress: Progress) -> Iterator[list[Facts]]:
    """After every setting what was measured so far; the settings `before` were already."""
    done, due = [*before], SETTINGS[len(before) :]
    task = progress.add_task("ablation", total=len(due) * sum(len(arm.values) for arm in swept))
    for setting in due:
        comparison = Comparison(captions, setting)
        points = []
        for arm in swept:
            for value in arm.values:
                progress.update(task, description=f"{setting.steps} steps, shift {setting.shift:g}: {arm.name}")
                points.append(asdict(comparison.point(arm, value)))
                progress.advance(task)
        done.append({"setting": asdict(setting), "points": points})
        yield done


def partial_file(path: Path, swept: list[Arm], captions: list[str]) -> Path:
    """Where a measurement that is not done lies; another one has another name."""
    asked = [[asdict(s) for s in SETTINGS], [[arm.name, list(arm.values)] for arm in swept], captions]
    return path.with_suffix(f".{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}.part")


def resumed(swept: list[Arm], captions: list[str], partial: Path) -> list[Facts]:
    """All settings, from those on that `partial` holds."""
    done = json.loads(partial.read_text()) if partial.is_file() else []
    with Progress(console=Console(stderr=True)) as progress:
        for so_far in measure(swept, captions, done, progress):
            done = so_far
            write_text(partial, json.dumps(done) + "\n")
    return done


def merged(old: list[Facts], new: list[Facts]) -> list[Facts]:
    """The old points with those of the arms that were measured again replaced."""
    return [
        {**before, "points": [p for p in before["points"] if p["arm"] not in _names(after)] + after["points"]}
        for before, after in zip(old, new, strict=True)
    ]


def _names(facts: Facts) -> set[str]:
    return {point["arm"] for point in facts["points"]}


def table(settings: list[Facts], swept: list[Arm]) -> list[list[str]]:
    names = [f"{f['setting']['steps']} steps, shift {f['setting']['shift']:g}" for f in settings]
    head = ["median error at", *[f"{name}, work {work:g}" for name in names for work in WORK]]
    by_name = [{curve.name: curve for curve in curves(f)} for f in settings]
    rows = []
    for arm in swept:
        drawn = [curves_here.get(arm.name) for curves_here in by_name for _ in WORK]
        cells = [
            curve.at_speedup(1 / work) if curve else None
            for curve, work in zip(drawn, WORK * len(settings), strict=True)
        ]
        rows.append([arm.name, *["-" if cell is None else f"{np.median(cell):.4f}" for cell in cells]])
    return [head, *rows]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--captions", type=int, help="8, or 48 of those held out")
    parser.add_argument("--arms", default="", metavar="REGEX", help="measure only these, and merge them in")
    parser.add_argument("--held-out", action="store_true", help="the default against fixed intervals, on test captions")
    parser.add_argument("--show", action="store_true", help="print the committed table, measure nothing")


def run(args: argparse.Namespace) -> None:
    split: Split
    path, swept, split = (HELD_OUT, held_out(), "test") if args.held_out else (RESULT, arms(), "calibration")
    if (args.show or args.arms) and not path.is_file():
        raise SystemExit(f"{path} does not exist: there is nothing to show or to merge into. Measure all arms first.")
    if not args.show:
        torch.set_num_threads(1)
        captions = prompts(split, args.captions or (48 if args.held_out else 8), seed=SEEDS[split])
        asked = [arm for arm in swept if re.search(args.arms, arm.name)]
        partial = partial_file(path, asked, captions)
        settings = resumed(asked, captions, partial)
        if args.arms:
            settings = merged(json.loads(path.read_text()), settings)
        write_text(path, json.dumps(settings, indent=1) + "\n")
        partial.unlink()
    Console(width=240).print(markdown(table(json.loads(path.read_text()), swept)), highlight=False)
