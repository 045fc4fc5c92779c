"""Every arm over its knob, at one setting: what it executed and what it lost. `python -m dicache.bench pareto`

Writes one JSON file per setting: the arguments, every package's version, the discretisation error of the uncached run
against one of four times the steps, the model's jaggedness, every point with its errors per caption, and what one value
of each arm costs to run. Tables, plots and the page are made from these files alone (`dicache.bench.showing.show`).

Every arm is swept until its median error is past all that the tables ask for, or its knob ends. What the file holds
stays: a sweep that was interrupted, or that arms or values have joined, goes on with what is missing. `--anew` draws
the arms asked for again, `--limit` those points whose distance to the limit is missing, `--check` compares.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from dicache.bench.arms.arm import Arm, coarse
from dicache.bench.arms.entrant import entrant
from dicache.bench.arms.oracle import Search, prompt_arm, static_arm
from dicache.bench.arms.ours import BASELINES, DICACHE, FINER, SCHEDULED
from dicache.bench.arms.peers import PEERS
from dicache.bench.arms.presets import PRESETS
from dicache.bench.arms.solvers import EULER
from dicache.bench.harness.check_again import check, difference
from dicache.bench.harness.costs import Cost, Meter, at_half_work
from dicache.bench.harness.jaggedness import path_ratio
from dicache.bench.harness.measure import Comparison
from dicache.bench.harness.store import RESULTS, Facts, Store, circumstances, differences, load
from dicache.bench.harness.sweep_end import MISSING, next_value
from dicache.bench.models.reference import Setting
from dicache.files.atomic import write_text
from dicache.reference.scenes import prompts

CAPTIONS, TRIALS = 32, 60
"""Where there is no file to go on with."""
ENTRANTS = Path("bench-results")
"""Where results with arms of other people's go."""


def all_arms(comparison: Comparison, args: argparse.Namespace) -> list[Arm]:
    """In the order of the tables. Raises SystemExit where an entrant has the name of another arm."""
    ours = [*DICACHE, *(() if args.quick else (*SCHEDULED, *FINER))]
    baselines = [*BASELINES, *(() if comparison.setting.solver == "euler" else (EULER,))]
    peers, methods = () if args.no_peers else PEERS, PRESETS if args.presets else ()
    searched = _searched(comparison, args.trials) if args.trials and not args.coarse else ()
    arms = [*ours, *baselines, *peers, *searched, *methods, *args.entrants]
    names = [arm.name for arm in arms]
    for arm in args.entrants:
        if names.count(arm.name) > 1:
            raise SystemExit(f"--arm: there are two arms called {arm.name!r}. Expected another name than theirs.")
    return coarse(arms) if args.coarse else arms


def _searched(comparison: Comparison, trials: int) -> list[Arm]:
    """The oracles."""
    setting = comparison.setting
    counts = sorted({max(3, round(share * setting.steps)) for share in (0.6, 0.5, 0.4, 0.3)}, reverse=True)
    search = Search(prompts("calibration", 8, seed=11), setting)
    return [
        static_arm(search, counts, trials=trials),
        prompt_arm(comparison.captions, setting, counts, trials=trials),
    ]


def opened(path: Path, comparison: Comparison, wanted: Facts, arms: Sequence[Arm], *, begin: bool) -> Store:
    """The file to fill: the one that is there, if it was measured with what these arms are measured with now, else an
    empty one.

    Raises SystemExit where the file was measured with something else and is not to `begin` anew.
    """
    facts = load(path) if path.is_file() else None
    if facts is not None:
        changed = differences(facts, wanted, [package for arm in arms for package in arm.packages])
        if not changed:
            return Store(path, facts)
        if not begin:
            raise SystemExit(
                f"{path} was measured with other {', '.join(changed)}, so nothing can join it. Measure with the same, "
                "or into another folder (--out), or all arms again (--anew, without --arms)."
            )
    scale = {
        "uncached_seconds": comparison.reference.seconds,
        "discretisation": comparison.discretisation(),
        "jaggedness": path_ratio(comparison.setting),
    }
    return Store(path, wanted | scale | {"notes": {}, "warmups": {}, "pending": [], "points": [], "costs": []})


def sweep(
    store: Store, comparison: Comparison, arms: Sequence[Arm], order: Sequence[Arm], args: argparse.Namespace
) -> list[str]:
    """Draw what is missing of these arms, and save after every point: first those at their end, so that what is pending
    is what is unfinished. In words, what was drawn again and differed.
    """
    arms = sorted(arms, key=lambda arm: next_value(arm, store.points(arm.name)) is not MISSING)
    meter: Meter | None = None
    values, differing = {arm.name: arm.order for arm in order}, []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("arms", total=len(arms))
        for arm in arms:
            _describe(store.facts, arm)
            while (value := next_value(arm, store.points(arm.name))) is not MISSING:
                progress.update(task, description=f"{arm.name}, {arm.knob} {value}")
                store.add(comparison.point(arm, value))
            if args.limit:
                differing += _to_limit(store, comparison, arm)
            if not args.no_costs and _unpriced(store, arm):
                meter = meter or Meter(comparison.captions, comparison.setting)
                _price(store, meter, arm)
            store.done(arm.name, values)
            progress.advance(task)
    return differing


def _to_limit(store: Store, comparison: Comparison, arm: Arm) -> list[str]:
    """Draw the points again that were not held against the limit; the rest of them stays as it is."""
    differing = []
    for before in store.points(arm.name):
        if before.limit or before.failure is not None:
            continue
        after = comparison.point(arm, before.value)
        if change := difference(before, after):
            differing.append(f"{arm.name}, {arm.knob} {before.value}: {change}")
        else:
            store.replace(replace(before, limit=after.limit))
    return differing


def _describe(facts: Facts, arm: Arm) -> None:
    for key, value in (("notes", arm.note), ("warmups", arm.warmup)):
        facts[key].pop(arm.name, None)
        if value:
            facts[key][arm.name] = value


def _unpriced(store: Store, arm: Arm) -> bool:
    """Whether the arm has no cost yet and can have one: something ran, and it is no searched schedule."""
    ran = at_half_work(store.points(arm.name)) is not None
    return ran and arm.kind != "oracle" and arm.name not in [c["arm"] for c in store.facts["costs"]]


def _price(store: Store, meter: Meter, arm: Arm) -> None:
    point = at_half_work(store.points(arm.name))
    assert point is not None
    cost: Cost = meter.cost(arm, point)
    store.add(cost)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=3.5, help="1: none")
    parser.add_argument("--batched", action="store_true", help="both guidance branches in one denoiser call")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--shift", type=float, default=1.0, help="bend of the sigmas; above 1: more steps at high noise"
    )
    parser.add_argument("--solver", choices=("euler", "dpm++"), default="euler")
    parser.add_argument("--captions", type=int, help=f"as many as in the file, or {CAPTIONS}")
    parser.add_argument(
        "--trials", type=int, help=f"per point of the searched schedules, 0: none; as in the file, or {TRIALS}"
    )
    parser.add_argument("--coarse", action="store_true", help="every second value of peers and baselines, no search")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--presets", action="store_true", help="also published methods, as dicache composes them")
    parser.add_argument("--no-costs", action="store_true", help="no second pass for time, memory and waits")
    parser.add_argument(
        "--quick", action="store_true", help="4 captions and 12 steps at most, no peers, no searched schedules"
    )
    parser.add_argument(
        "--arm",
        dest="entrants",
        metavar="FILE",
        type=entrant,
        action="append",
        default=[],
        help="run the arm of this Python file beside the rest (docs/your-arm.md); may be repeated",
    )
    parser.add_argument("--arms", metavar="REGEX", help="only arms whose name matches, merged into the file")
    parser.add_argument("--anew", action="store_true", help="draw the arms again, also what the file holds of them")
    parser.add_argument("--limit", action="store_true", help="draw points again that lack the distance to the limit")
    parser.add_argument("--check", action="store_true", help="draw again what the file holds, compare, write nothing")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more change rounding, and so decisions")
    parser.add_argument("--out", type=Path, help="folder for the JSON file; with --arm by default ./bench-results")


def run(args: argparse.Namespace) -> Path:
    """The result file. With `--check`, raises SystemExit(1) if what is drawn now differs from it."""
    torch.set_num_threads(args.threads)
    setting, path = _of_file(args)
    if args.check and not path.is_file():
        raise SystemExit(f"{path} does not exist: there is nothing to check.")
    comparison = Comparison(prompts("test", args.captions, seed=0), setting, to_limit=not args.check)
    wanted = circumstances(setting, comparison.captions, trials=0 if args.coarse else args.trials)
    arms = all_arms(comparison, args)
    asked = _asked(arms, args, resuming=path.is_file())
    if args.check:
        check(load(path), wanted, comparison, asked)
        return path
    store = opened(path, comparison, wanted, asked, begin=args.anew and not args.arms and not args.entrants)
    drawn = store.select([arm.name for arm in asked], anew=args.anew)
    differing = sweep(store, comparison, [arm for arm in asked if arm.name in drawn], arms, args)
    _complain(store, args.entrants, differing)
    return path


def _asked(arms: Sequence[Arm], args: argparse.Namespace, *, resuming: bool) -> list[Arm]:
    """By name; without one all, or the entrants alone beside results that are there."""
    if args.arms is None and args.entrants and resuming:
        return list(args.entrants)
    return [arm for arm in arms if re.search(args.arms or "", arm.name)]


def _of_file(args: argparse.Namespace) -> tuple[Setting, Path]:
    """The setting, and its result file. What was not asked for is as in that file; an entrant's own folder begins with
    the results that are here.
    """
    if args.quick:
        args.steps, args.captions, args.trials = min(args.steps, 12), min(args.captions or 4, 4), 0
        args.no_peers = True
    setting = Setting(args.steps, args.guidance, args.batch, args.shift, args.solver, args.batched)
    args.out = args.out or (ENTRANTS if args.entrants else RESULTS)
    path, shipped = args.out / f"{setting.name}.json", RESULTS / f"{setting.name}.json"
    if args.out == ENTRANTS and not path.is_file() and shipped.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, shipped.read_text())
    facts: Facts = load(path) if path.is_file() else {"captions": [""] * CAPTIONS, "trials": TRIALS}
    args.captions = len(facts["captions"]) if args.captions is None else args.captions
    args.trials = facts["trials"] if args.trials is None else args.trials
    return setting, path


def _complain(store: Store, entrants: Sequence[Arm], differing: Sequence[str]) -> None:
    """Raises SystemExit where points that were drawn again differed, or an entrant failed at every value."""
    if differing:
        raise SystemExit("drawn again to be held against the limit, and not the same:\n" + "\n".join(differing))
    for arm in entrants:
        points = store.points(arm.name)
        if points and all(point.failure is not None for point in points):
            raise SystemExit(f"{arm.name} failed at {arm.knob} {points[0].value}: {points[0].failure}")
