"""How many steps should a peer compute at the start before it caches? `python -m dicache.bench warmup`

Every arm with a warm-up is swept over every second value of its knob, at each of four shares of the steps, on
calibration captions at the main setting. The best share is the one with the least median error at twice the speed,
interpolated along each sweep. `Arm.warmup` holds what was found; the table is in the laboratory notebook.
"""

import argparse
import dataclasses

from rich.console import Console
from rich.progress import Progress

from dicache.bench.arms.arm import Arm, coarse
from dicache.bench.arms.peers import PEERS
from dicache.bench.harness.curves import curves
from dicache.bench.harness.measure import Comparison
from dicache.bench.models.reference import Setting
from dicache.bench.showing.tables import markdown
from dicache.reference.scenes import prompts

SHARES = (0.05, 0.1, 0.2, 0.3)
SPEEDUP = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--captions", type=int, default=8, help="calibration captions")


def run(args: argparse.Namespace) -> None:
    comparison = Comparison(prompts("calibration", args.captions, seed=13), Setting())
    arms = coarse([arm for arm in PEERS if arm.warmup is not None])
    with Progress(console=Console(stderr=True)) as progress:
        rows = [_row(comparison, arm) for arm in progress.track(arms)]
    head = ["peer", *[f"median error at {SPEEDUP:g}x, warm-up {share:g}" for share in SHARES], "best"]
    print(markdown([head, *rows]))


def _row(comparison: Comparison, arm: Arm) -> list[str]:
    errors = {share: error for share in SHARES if (error := _error(comparison, arm, share)) is not None}
    cells = [f"{errors[share]:.4f}" if share in errors else "-" for share in SHARES]
    return [arm.name, *cells, f"{min(errors, key=errors.__getitem__):g}" if errors else "-"]


def _error(comparison: Comparison, arm: Arm, share: float) -> float | None:
    """The median over captions; None if the sweep does not reach this speed-up or nothing ran."""
    warmed = dataclasses.replace(arm, warmup=share)
    points = [dataclasses.asdict(comparison.point(warmed, value)) for value in warmed.values]
    medians = [curve.median_at(SPEEDUP) for curve in curves({"points": points})]
    return medians[0] if medians else None
