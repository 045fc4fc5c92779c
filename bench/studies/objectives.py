"""What does a search gain by a score of pictures in place of the latent's error?
`python -m dicache.bench.studies.objectives [--captions 16]`

ECAD is run on calibration captions of the reference model by the latent's error, by how similar the picture is to the
uncached one (SSIM), and by the model's own reader: the share of a caption's attributes that its picture shows. Of each
the schedule of a cost is drawn on test captions, where all three are measured.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dicache.api import enable
from dicache.bench.models.reference import Setting, fresh
from dicache.finders.ecad import Ecad
from dicache.measuring.prompt_runs import Drawer, Drawn
from dicache.measuring.schedule_measurements import Calibration
from dicache.promise.metrics import relative_error, resolved
from dicache.reference.reader import Reader
from dicache.reference.scenes import prompts
from dicache.schedules.objective import Score
from dicache.schedules.pareto import ParetoSet
from dicache.sites import Evaluation
from dicache.types import Action

COSTS = (0.61, 0.51, 0.41)
SEED, FOUND_ON = 0, 12_000
BATCH = 8


class Similar:
    """How similar pictures are to those that the same prompts draw uncached."""

    def __init__(self, pipe: Any, captions: Sequence[str], setting: Setting, seed: int) -> None:  # noqa: ANN401
        drawn = _drawn(pipe, captions, setting, seed)
        assert drawn.images is not None
        self.uncached: dict[str, Tensor] = dict(zip(captions, drawn.images, strict=True))
        self.loss: Callable[[Tensor, Tensor], Tensor] = resolved("ssim")["ssim"]

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        return -self.loss(images, torch.stack([self.uncached[caption] for caption in captions]))


def _drawn(pipe: Any, captions: Sequence[str], setting: Setting, seed: int) -> Drawn:  # noqa: ANN401
    call = {"negative_prompt": "", "true_cfg_scale": setting.guidance}
    drawer = Drawer(pipe, captions, setting.steps, seed, call, images=True)
    parts = [drawer.draw(range(len(captions))[start : start + BATCH]) for start in range(0, len(captions), BATCH)]
    return Drawn(torch.cat([p.latents for p in parts]), torch.cat([p.images for p in parts if p.images is not None]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Schedules found by scores of pictures.")
    parser.add_argument("--captions", type=int, default=16, help="to search on, and as many others to test on")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--population", type=int, default=16)
    args = parser.parse_args()
    setting, console = Setting(steps=args.steps), Console(width=140)
    pipe, reader = fresh(setting), Reader.shipped()
    tested, searched = prompts("test", args.captions, seed=0), prompts("calibration", args.captions, seed=12)
    similar, similar_there = (
        Similar(pipe, *drawn) for drawn in ((searched, setting, FOUND_ON), (tested, setting, SEED))
    )
    objectives: dict[str, Score | None] = {"the latent's error": None, "SSIM": similar, "the reader": reader.score}
    exact = _drawn(pipe, tested, setting, SEED)
    assert exact.images is not None
    console.print(f"uncached, the reader: {float(reader.score(exact.images, tested).mean()):.4f}")
    for name, objective in objectives.items():
        call = {"negative_prompt": "", "true_cfg_scale": setting.guidance}
        drawn = Calibration(searched, setting.steps, seed=FOUND_ON, batch=BATCH, call=call, objective=objective)
        finder = Ecad(args.generations, args.population, fill=Action.EXTRAPOLATE)
        front = finder.find(pipe, Evaluation(), drawn)
        assert isinstance(front, ParetoSet)
        for cost in COSTS:
            schedule = front.at(cost)
            with enable(pipe, schedule=schedule):
                other = _drawn(pipe, tested, setting, SEED)
            assert other.images is not None
            numbers = {
                "work": schedule.work,
                "median error": float(relative_error(other.latents, exact.latents).median()),
                "SSIM": float(similar_there(other.images, tested).mean()),
                "reader": float(reader.score(other.images, tested).mean()),
            }
            console.print(f"by {name:20s}", *(f"{what} {number:.4f}" for what, number in numbers.items()))


if __name__ == "__main__":
    main()
