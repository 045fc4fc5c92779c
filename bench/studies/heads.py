"""Is an intermediate head better than a line, at equal work?
`python -m dicache.bench.studies.heads [--model scenes-unet] [--depths 1,2,4]`

Heads are fitted on calibration captions (`dicache.fit(kind="innovation")`); every n-th step and the last compute; what
is between is held, drawn out on a line, or foretold from the first blocks, which run at every step. On test captions:
executed work, probe and head included, and the median error of the final latent.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console

import dicache
from dicache.approximators import Align, Approximator, Extrapolate, ExtrapolateNoise, Reuse
from dicache.bench.models import reference, scenes_unet
from dicache.controllers import Clip, Interval
from dicache.estimators import ClosedLoop
from dicache.measuring.prompt_runs import Drawer
from dicache.probes import FirstBlocks, Probe
from dicache.promise.metrics import relative_error
from dicache.reference import prompts

INTERVALS = (2, 3, 4)
SEED, FITTED = 41, 43
BATCH = 8
Arm = tuple[str, Approximator, Probe]


def model_of(name: str, steps: int) -> tuple[Any, dict[str, Any]]:
    """A pipeline, and what it is called with."""
    if name == "scenes":
        setting = reference.Setting(steps=steps)
        return reference.fresh(setting), {"negative_prompt": "", "true_cfg_scale": setting.guidance}
    return scenes_unet.pipeline(), {"negative_prompt": "", "guidance_scale": scenes_unet.GUIDANCE}


def arms(pipe: Any, call: dict[str, Any], steps: int, captions: int, depths: list[int]) -> Iterator[Arm]:  # noqa: ANN401
    nothing = FirstBlocks(depth=0)
    yield "held", Reuse(), nothing
    yield "line", Extrapolate(), nothing
    yield "line of the noise, half log SNR", ExtrapolateNoise(evenly=True), nothing
    for depth in depths:
        yield f"alignment, depth {depth}", Align(), FirstBlocks(depth)
        options: dict[str, Any] = {"kind": "innovation", "depth": depth, "seed": FITTED, "progress": False}
        negative = {"negative_prompt": [""] * captions}
        fitted = dicache.fit(pipe, prompts("calibration", captions, FITTED), steps=steps, **options, **call | negative)
        yield f"head, depth {depth}", fitted.approximator(), fitted.probe


def main() -> None:
    parser = argparse.ArgumentParser(description="Intermediate heads against lines.")
    parser.add_argument("--model", choices=["scenes", "scenes-unet"], default="scenes")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--captions", type=int, default=8)
    parser.add_argument("--fitted", type=int, default=8, help="captions that heads are fitted on")
    parser.add_argument("--depths", default="1,2,4")
    args = parser.parse_args()
    (pipe, call), console = model_of(args.model, args.steps), Console(width=120)
    drawer = Drawer(pipe, prompts("test", args.captions), args.steps, SEED, call, images=False)
    batches = [range(args.captions)[start : start + BATCH] for start in range(0, args.captions, BATCH)]
    exact = torch.cat([drawer.draw(batch).latents for batch in batches])
    for name, approximator, probe in arms(
        pipe, call, args.steps, args.fitted, [int(d) for d in args.depths.split(",")]
    ):
        cells = []
        for interval in INTERVALS:
            config = dicache.Config(Clip(Interval(interval), 0.0, last=1), ClosedLoop(), (approximator,), probe)
            before = drawer.spent
            with dicache.enable(pipe, config=config):
                drawn = torch.cat([drawer.draw(batch).latents for batch in batches])
            work = (drawer.spent.executed - before.executed) / (drawer.spent.uncached - before.uncached)
            cells.append(f"{work:.3f} / {float(relative_error(drawn, exact).median()):.4f}")
        console.print(f"{name:32s}", *cells, sep=" | ")


if __name__ == "__main__":
    main()
