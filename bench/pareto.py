"""Every arm over its knob, at one setting: what it executed and what it lost. `python -m dicache.bench pareto`

Writes one JSON file per setting: the arguments, every package's version, the discretisation error of the uncached run
against one of four times the steps, the model's jaggedness, and every point with its errors per caption. Tables, plots
and the page are made from these files alone (`dicache.bench.show`).
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from dicache.bench.arms import Arm, Setting
from dicache.bench.jaggedness import path_ratio
from dicache.bench.measure import Judge, Point, draw, fresh
from dicache.bench.oracle import Search, prompt_arm, static_arm
from dicache.bench.ours import BASELINES, DICACHE
from dicache.bench.peers import PEERS
from dicache.demo import relative_error
from dicache.reference.scenes import prompts

RESULTS = Path(__file__).parent / "results"
FORMAT = 1
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "torchmetrics", "cache-dit", "dit-smoothcache", "DeepCache")


def sweep(judge: Judge, arms: Sequence[Arm], progress: Progress) -> list[Point]:
    task = progress.add_task("arms", total=sum(len(arm.values) for arm in arms))
    points = []
    for arm in arms:
        for value in arm.values:
            progress.update(task, description=f"{arm.name}, {arm.knob} {value}")
            points.append(judge.point(arm, value))
            progress.advance(task)
    return points


def arms(judge: Judge, *, trials: int, peers: bool) -> list[Arm]:
    steps = judge.setting.steps
    counts = sorted({max(3, round(share * steps)) for share in (0.6, 0.5, 0.4, 0.3)}, reverse=True)
    found = [*DICACHE, *BASELINES, *(PEERS if peers else ())]
    if trials:
        search = Search(prompts("calibration", 8, seed=11), judge.setting)
        found += [static_arm(search, counts, trials=trials), prompt_arm(judge, counts, trials=trials)]
    return found


def discretisation(judge: Judge) -> list[float]:
    """Per caption: the error of the uncached run itself, against one of four times the steps."""
    setting = dataclasses.replace(judge.setting, steps=4 * judge.setting.steps)
    fine = draw(fresh(setting), judge.captions, setting)
    return relative_error(judge.reference.latents, fine.latents).tolist()


def measure(setting: Setting, captions: list[str], *, trials: int, peers: bool, progress: Progress) -> dict[str, Any]:
    judge = Judge(captions, setting)
    swept = arms(judge, trials=trials, peers=peers)
    points = sweep(judge, swept, progress)
    return {
        "format": FORMAT,
        "setting": dataclasses.asdict(setting),
        "captions": captions,
        "trials": trials,
        "versions": {name: _version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
        "uncached_seconds": judge.reference.seconds,
        "discretisation": discretisation(judge),
        "jaggedness": path_ratio(setting),
        "notes": {arm.name: arm.note for arm in swept if arm.note},
        "points": [dataclasses.asdict(point) for point in points],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def name_of(setting: Setting) -> str:
    return f"{setting.solver}-{setting.steps}-guidance{setting.guidance:g}-shift{setting.shift:g}-batch{setting.batch}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=3.5, help="1: none")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--shift", type=float, default=1.0, help="bend of the sigmas; above 1, more steps at high noise"
    )
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--trials", type=int, default=60, help="per point of the searched schedules; 0 leaves them out")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--quick", action="store_true", help="4 captions, 12 steps, no peers, no searched schedules")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file")


def run(args: argparse.Namespace) -> Path:
    if args.quick:
        args.steps, args.captions, args.trials, args.no_peers = 12, 4, 0, True
    setting = Setting(args.steps, args.guidance, args.batch, args.shift)
    captions = prompts("test", args.captions, seed=0)
    with Progress(console=Console(stderr=True)) as progress:
        facts = measure(setting, captions, trials=args.trials, peers=not args.no_peers, progress=progress)
    args.out.mkdir(parents=True, exist_ok=True)
    path: Path = args.out / f"{name_of(setting)}.json"
    path.write_text(json.dumps(facts, indent=1))
    return path
