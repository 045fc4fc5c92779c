"""The demo: eight captions from easy to hard, uncached and within an error budget, same seeds, side by side."""

import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from diffusers import FluxPipeline
from torch import Tensor

from dicache.api import enable
from dicache.promise.metrics import relative_error
from dicache.reference.assembly import GUIDANCE, STEPS, pipeline
from dicache.reference.reader import Reader
from dicache.reporting.page import COLOURS
from dicache.reporting.report import Report
from dicache.types import Action

CAPTIONS = (
    "center large red circle on white background",
    "top-right large yellow star on blue background",
    "left large green square, right large purple cross on white background",
    "top small black ring, bottom large orange triangle on cyan pink gradient background",
    "top-left large striped blue circle, bottom small red star on yellow background",
    "top-left large checkered red square, center small white ring, bottom-right large cyan cross on grey background",
    "top-right large pink star, left small striped green triangle, bottom large black ring "
    "on white blue gradient background",
    "top-left small checkered purple circle, top-right large striped orange cross, left large red ring, "
    "bottom-right small white star on green checkered background",
)


@dataclass(frozen=True)
class Row:
    """One caption's outcome. Errors are relative L2 of the final latent against the uncached run of the same seed; wall
    time is that of the caption alone.
    """

    caption: str
    work: float
    estimated_error: float
    true_error: float
    budget: float
    mac_speedup: float
    wall_speedup: float
    attributes_uncached: float
    attributes_cached: float
    decisions: str


@dataclass(frozen=True)
class Outcome:
    rows: list[Row]
    uncached: Tensor
    cached: Tensor
    """Pictures, (B, 3, 32, 32)."""
    report: Report
    wall_speedup: float
    """Of the whole batch."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "wall_speedup": self.wall_speedup,
            "captions": [asdict(row) for row in self.rows],
            "report": self.report.to_dict(),
        }


def draw(
    pipe: FluxPipeline, captions: list[str], seeds: list[int], steps: int, tick: Callable[[], None] = lambda: None
) -> tuple[Tensor, float]:
    """Final packed latents of the captions, (B, 64, 48), and the seconds it took; `tick` is called after every step."""

    def after_step(pipe: FluxPipeline, index: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        tick()
        return {}

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    started = time.perf_counter()
    latents = pipe(
        captions,
        negative_prompt=[""] * len(captions),
        true_cfg_scale=GUIDANCE,
        num_inference_steps=steps,
        generator=generators,
        output_type="latent",
        callback_on_step_end=after_step,
    ).images
    return latents, time.perf_counter() - started


def pictures(pipe: FluxPipeline, latents: Tensor) -> Tensor:
    """(B, 3, 32, 32) in [0, 1]."""
    side = pipe.default_sample_size * pipe.vae_scale_factor
    decoded: Tensor = pipe.vae.decode(
        pipe._unpack_latents(latents, side, side, pipe.vae_scale_factor), return_dict=False
    )[0]
    return (decoded / 2 + 0.5).clamp(0, 1)


def run(budget: float, *, steps: int = STEPS, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Both batches, then every caption alone for its wall time; `tick` is called `ticks(steps)` times."""
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    captions, seeds = list(CAPTIONS), list(range(len(CAPTIONS)))
    reference, uncached_seconds = draw(pipe, captions, seeds, steps, tick)
    with enable(pipe, error_budget=budget) as cache:
        latents, cached_seconds = draw(pipe, captions, seeds, steps, tick)
    report = cache.report()
    reader, before, after = Reader.shipped(), pictures(pipe, reference), pictures(pipe, latents)
    scores = [reader.score(images, captions) for images in (before, after)]
    errors = relative_error(latents, reference)
    rows = []
    for i, (caption, sample) in enumerate(zip(captions, report.to_dict()["samples"], strict=True)):
        _, alone = draw(pipe, [caption], [i], steps, tick)
        with enable(pipe, error_budget=budget):
            _, faster = draw(pipe, [caption], [i], steps, tick)
        work = sample["computed_fraction"]
        row = (
            work,
            sample["estimated_error"],
            float(errors[i]),
            budget,
            1 / work,
            alone / faster,
            float(scores[0][i]),
            float(scores[1][i]),
            report.strip(i),
        )
        rows.append(Row(caption, *row))
    return Outcome(rows, before, after, report, uncached_seconds / cached_seconds)


def ticks(steps: int) -> int:
    return steps * (2 + 2 * len(CAPTIONS))


def picture(outcome: Outcome, path: Path) -> None:
    """Per caption: uncached, cached, difference x10, and the decisions over the steps."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    figure, axes = pyplot.subplots(
        len(outcome.rows), 4, figsize=(11, 1.35 * len(outcome.rows)), width_ratios=[1, 1, 1, 6]
    )
    for i, (row, line) in enumerate(zip(outcome.rows, axes, strict=True)):
        difference = ((outcome.cached[i] - outcome.uncached[i]).abs() * 10).clamp(0, 1)
        for axis, image in zip(line, (outcome.uncached[i], outcome.cached[i], difference), strict=False):
            axis.imshow(image.permute(1, 2, 0).numpy())
        actions = (
            [Action(int(record.action[i, 0])) for record in outcome.report.trace.records]
            if outcome.report.trace
            else []
        )
        line[3].bar(range(len(actions)), 1, width=0.9, color=[COLOURS[action] for action in actions])
        line[3].set(xlim=(-0.6, len(actions) - 0.4), ylim=(0, 1))
        error = f"error {row.true_error:.3f} (estimated {row.estimated_error:.3f}, budget {row.budget:g})"
        words = f"work {row.work:.0%}   {error}   {row.mac_speedup:.2f}x"
        line[3].set_title(f"{textwrap.fill(row.caption, 130)}\n{words}", fontsize=6.5, loc="left")
        for axis in line:
            axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, title in zip(axes[0], ("uncached", "dicache", "difference x10"), strict=False):
        axis.set_title(title, fontsize=8)
    patches = [Patch(color=colour) for colour in COLOURS.values()]
    figure.legend(
        patches, [action.name.lower() for action in COLOURS], loc="lower right", ncol=4, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
