"""What holding inside a UNet and beside it costs: `python -m dicache.bench.studies.controls [--captions N]`

`scenes-unet` with its ControlNet: calibration scenes drawn from their captions and edges. Of every arm the work of both
networks, the error of the latent against the uncached run, the wall time in one alternation with it, and how well edges
are obeyed (F1 of edge pixels). "frozen before" is what the gate is held against: control of the first step until the
gate, fresh from there on. `--packaged` draws nothing: it prints, off the zoo's file, how much faster dicache is than
the package DeepCache on the same UNet at its errors.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import dicache
from dicache import presets
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.bench.harness.curves import Reach, curves
from dicache.bench.harness.store import RESULTS, load
from dicache.bench.models.scenes_unet import Solver, draw, edges, pictures, pipeline
from dicache.bench.models.training.scenes_unet_card import edge_f1
from dicache.bench.zoo.arms import packaged_deepcache
from dicache.controllers.gate import Gate
from dicache.controllers.interval import Interval
from dicache.reference.render import render
from dicache.reference.scenes import caption, scenes
from dicache.sites import Control
from dicache.tensors.mac_meter import MacCounter

SEED, PACKAGED = 31, "the package DeepCache"
IN_ZOO = RESULTS / "zoo" / "scenes-unet-ddim-20-steps.json"


class Against(NamedTuple):
    """The package at one interval, and what arms of ours reach at its median error."""

    interval: int
    speedup: float
    error: float
    ours: dict[str, Reach]


def against_packaged(path: Path = IN_ZOO) -> list[Against]:
    """From the zoo's file; work is that of the UNet."""
    facts = load(path)
    ours = {curve.name: curve for curve in curves(facts) if curve.kind == "dicache"}
    rows = []
    for point in facts["points"]:
        if point["arm"] == "DeepCache" and point["failure"] is None:
            error = float(np.median(point["errors"]))
            reached = {name: reach for name, curve in ours.items() if (reach := curve.reach(error)) is not None}
            rows.append(Against(point["value"], 1 / point["work"], error, reached))
    return rows


def tell_against(console: Console) -> None:
    console.print("interval | the package's speed-up | its error | ours at that error, and how many times as much")
    for row in against_packaged():
        ours = (f"{name} {reach}, {reach.speedup / row.speedup:.2f}" for name, reach in row.ours.items())
        console.print(row.interval, f"{row.speedup:.2f}", f"{row.error:.4f}", *ours, sep=" | ", highlight=False)


def arms() -> Iterator[tuple[str, dict[str, Any]]]:
    """What `enable` is given."""
    for budget in (0.0, 0.02, 0.05, 0.1):
        yield f"error_budget={budget}", {"error_budget": budget}
    for interval in (2, 3, 5):
        yield f"Control(), every {interval}", {"config": dicache.Config(Interval(interval), sites=Control())}
    for gate in (0.25, 0.5, 0.75):
        frozen = Gate(Interval(1), gate)
        yield f"frozen after {gate}", {"config": dicache.Config(frozen, sites=Control())}
        yield (
            f"speed-up 2, frozen after {gate}",
            {"config": dicache.Config(dicache.controllers.Counted(2.0), control=frozen)},
        )
    for interval, (level, layers) in itertools.product((2, 3, 5), ((0, 1), (1, 0))):
        named = f"{interval}, {level}, {layers}"
        yield f"deepcache({named})", {"config": presets.deepcache(interval, level, layers)}
        for name, fill in (("reuse", Reuse()), ("a line", Extrapolate())):
            ends = presets.deepcache(interval, level, layers, approximator=fill, first=4, last=1)
            yield f"deepcache({named}, first=4, last=1), {name}", {"config": ends}
        yield f"hgc({named})", {"config": presets.hgc(interval, 0.5, level=level, layers=layers)}
    for interval, gate in itertools.product((2, 3, 4), (0.25, 0.35)):
        yield f"hgc({interval}, gate={gate})", {"config": presets.hgc(interval, gate)}
    yield "hgc, prompts", {"config": presets.hgc(gate=0.5, grain="prompts")}
    yield "tgate(.4, 5)", {"config": presets.tgate(0.4, 5)}


@contextmanager
def frozen_before(pipe: Any, gate: int) -> Iterator[None]:  # noqa: ANN401
    """Control of the first step until step `gate`."""
    forward, outputs = pipe.controlnet.forward, list[Any]()

    def frozen(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        outputs.append(forward(*args, **kwargs) if not outputs or len(outputs) >= gate else outputs[0])
        return outputs[-1]

    pipe.controlnet.forward = frozen
    try:
        yield
    finally:
        del pipe.controlnet.forward


def apart(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="What holding inside a UNet and beside it costs.")
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--solver", choices=get_args(Solver), default="ddim")
    parser.add_argument("--arms", default="", help="only those whose name has this in it")
    parser.add_argument("--packaged", action="store_true", help="only against the package, from the zoo's file")
    args = parser.parse_args()
    if args.packaged:
        tell_against(Console(width=160))
        return
    shown = list(itertools.islice(scenes("calibration", seed=SEED), args.captions))
    captions, image = [caption(scene) for scene in shown], edges(render(shown))
    pipe = pipeline(control=True, solver=args.solver)
    pipe.set_progress_bar_config(disable=True)

    def drawn() -> tuple[Tensor, float]:
        torch.manual_seed(SEED)
        begun = time.perf_counter()
        latents = draw(pipe, captions, args.steps, first=SEED, image=image)
        return latents, time.perf_counter() - begun

    drawn()
    plain, _ = drawn()
    table, console = Table("arm", "work", "median error", "worst", "wall", "edges"), Console(width=160)

    def row_of(name: str, work: str, latents: Tensor, wall: str) -> None:
        errors = apart(latents, plain)
        figures = (f"{errors.median():.4f}", f"{errors.max():.4f}", wall, f"{edge_f1(pictures(latents), image):.3f}")
        table.add_row(name, work, *figures)
        console.print(name, work, *figures, sep=" | ", highlight=False)

    row_of("uncached", "1", plain, "1")
    for name, options in (named for named in arms() if args.arms in named[0]):
        _, before = drawn()
        with dicache.enable(pipe, **options) as cache:
            latents, seconds = drawn()
        _, after = drawn()
        row_of(name, f"{1 / cache.report().compute_speedup:.3f}", latents, f"{2 * seconds / (before + after):.3f}")
    for interval in (2, 3, 5) if args.arms in PACKAGED else ():
        with MacCounter() as uncached:
            drawn()
        with packaged_deepcache(pipe, interval), MacCounter() as counted:
            latents, _ = drawn()
        row_of(f"{PACKAGED}, every {interval}", f"{counted.total / uncached.total:.3f}", latents, "-")
    for gate in (args.steps // 4, args.steps // 2) if args.arms in "frozen before" else ():
        with frozen_before(pipe, gate):
            latents, _ = drawn()
        row_of(f"frozen before {gate / args.steps:g}", "-", latents, "-")
    console.print(table)


if __name__ == "__main__":
    main()
