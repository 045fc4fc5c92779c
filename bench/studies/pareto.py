"""Every arm over its knob, at one setting: what it executed and what it lost. `python -m dicache.bench pareto`

Writes one JSON file per setting: the arguments, every package's version, the discretisation error of the uncached run
against one of four times the steps, the model's jaggedness, every point with its errors per caption, and what one value
of each arm costs to run. Tables, plots and the page are made from these files alone (`dicache.bench.showing.show`). An
interrupted sweep goes on where it was; `--arms` draws some arms anew and leaves the others; `--check` compares.
"""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from dicache.bench.arms.arm import Arm, coarse
from dicache.bench.arms.oracle import Search, prompt_arm, static_arm
from dicache.bench.arms.ours import BASELINES, DICACHE, SCHEDULED
from dicache.bench.arms.peers import PEERS
from dicache.bench.arms.presets import PRESETS
from dicache.bench.harness.check_again import check
from dicache.bench.harness.costs import Cost, Meter, at_half_work
from dicache.bench.harness.jaggedness import path_ratio
from dicache.bench.harness.measure import Comparison
from dicache.bench.harness.store import RESULTS, Facts, Store, circumstances, differences, load
from dicache.bench.models.reference import Setting, draw, fresh
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts


def all_arms(comparison: Comparison, args: argparse.Namespace) -> list[Arm]:
    """In the order of the tables."""
    steps = comparison.setting.steps
    counts = sorted({max(3, round(share * steps)) for share in (0.6, 0.5, 0.4, 0.3)}, reverse=True)
    ours = [*DICACHE, *(() if args.quick else SCHEDULED)]
    arms = [*ours, *BASELINES, *(() if args.no_peers else PEERS), *(PRESETS if args.presets else ())]
    if args.coarse:
        return coarse(arms)
    if args.trials:
        search = Search(prompts("calibration", 8, seed=11), comparison.setting)
        arms += [
            static_arm(search, counts, trials=args.trials),
            prompt_arm(comparison.captions, comparison.setting, counts, trials=args.trials),
        ]
    return arms


def discretisation(comparison: Comparison) -> list[float]:
    """Per caption: the error of the uncached run itself, against one of four times the steps."""
    setting = dataclasses.replace(comparison.setting, steps=4 * comparison.setting.steps)
    fine = draw(fresh(setting), comparison.captions, setting)
    return relative_error(comparison.reference.latents, fine.latents).tolist()


def opened(path: Path, comparison: Comparison, wanted: Facts, *, some: bool) -> Store:
    """The file to fill: the one that is there, if it was measured with the same, else an empty one.

    Raises SystemExit where only some arms were asked for and the others, in the file, were measured with something
    else.
    """
    facts = load(path) if path.is_file() else None
    if facts is not None:
        changed = differences(facts, wanted)
        if not changed:
            return Store(path, facts)
        if some:
            raise SystemExit(f"{path} was measured with other {', '.join(changed)}: leave out --arms to begin anew.")
    scale = {
        "uncached_seconds": comparison.reference.seconds,
        "discretisation": discretisation(comparison),
        "jaggedness": path_ratio(comparison.setting),
    }
    return Store(path, wanted | scale | {"notes": {}, "warmups": {}, "pending": [], "points": [], "costs": []})


def sweep(store: Store, comparison: Comparison, arms: Sequence[Arm], order: Sequence[str], *, costs: bool) -> None:
    """Draw what is missing of these arms, and save after every point."""
    meter = Meter(comparison.captions, comparison.setting) if costs and arms else None
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("arms", total=sum(len(arm.values) for arm in arms))
        for arm in arms:
            _describe(store.facts, arm)
            drawn = [point.value for point in store.points(arm.name)]
            for value in arm.values:
                progress.update(task, description=f"{arm.name}, {arm.knob} {value}")
                if value not in drawn:
                    store.add(comparison.point(arm, value))
                progress.advance(task)
            if meter:
                _price(store, meter, arm)
            store.done(arm.name, order)


def _describe(facts: Facts, arm: Arm) -> None:
    for key, value in (("notes", arm.note), ("warmups", arm.warmup)):
        facts[key].pop(arm.name, None)
        if value:
            facts[key][arm.name] = value


def _price(store: Store, meter: Meter, arm: Arm) -> None:
    """Add the arm's cost, unless nothing ran or it is a searched schedule."""
    point = at_half_work(store.points(arm.name))
    if point is not None and arm.kind != "oracle" and arm.name not in [c["arm"] for c in store.facts["costs"]]:
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
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--trials", type=int, default=60, help="per point of the searched schedules; 0 leaves them out")
    parser.add_argument("--coarse", action="store_true", help="every second value of peers and baselines, no search")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--presets", action="store_true", help="also published methods, as dicache composes them")
    parser.add_argument("--no-costs", action="store_true", help="no second pass for time, memory and waits")
    parser.add_argument(
        "--quick", action="store_true", help="4 captions and 12 steps at most, no peers, no searched schedules"
    )
    parser.add_argument("--arms", metavar="REGEX", help="draw only arms whose name matches, and merge them in")
    parser.add_argument("--check", action="store_true", help="draw again what the file holds, compare, write nothing")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more change rounding, and so decisions")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file")


def run(args: argparse.Namespace) -> Path:
    """The result file. With `--check`, raises SystemExit(1) if what is drawn now differs from it."""
    torch.set_num_threads(args.threads)
    if args.quick:
        args.steps, args.captions, args.trials, args.no_peers = min(args.steps, 12), min(args.captions, 4), 0, True
    setting = Setting(args.steps, args.guidance, args.batch, args.shift, args.solver, args.batched)
    path: Path = args.out / f"{setting.name}.json"
    if args.check and not path.is_file():
        raise SystemExit(f"{path} does not exist: there is nothing to check.")
    comparison = Comparison(prompts("test", args.captions, seed=0), setting)
    wanted = circumstances(setting, comparison.captions, trials=0 if args.coarse else args.trials)
    arms = all_arms(comparison, args)
    asked = [arm for arm in arms if re.search(args.arms or "", arm.name)]
    if args.check:
        check(load(path), wanted, comparison, asked)
        return path
    store = opened(path, comparison, wanted, some=bool(args.arms))
    drawn = store.select([arm.name for arm in asked])
    order = [arm.name for arm in arms]
    sweep(store, comparison, [arm for arm in asked if arm.name in drawn], order, costs=not args.no_costs)
    return path
