"""The demo: eight captions from easy to hard, uncached and within an error budget, same seeds, side by side."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from dicache.api import enable
from dicache.promise.metrics import relative_error
from dicache.reference.assembly import STEPS, pipeline
from dicache.reference.draw import draw, pictures
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

    def actions(self, i: int) -> list[Action]:
        """What sample i did, step by step."""
        trace = self.report.trace
        return [] if trace is None else [Action(int(record.action[i, 0])) for record in trace.records]

    def to_dict(self) -> dict[str, Any]:
        return {
            "wall_speedup": self.wall_speedup,
            "captions": [asdict(row) for row in self.rows],
            "report": self.report.to_dict(),
        }


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
    attributes_before, attributes_after = (reader.score(images, captions) for images in (before, after))
    errors = relative_error(latents, reference)
    rows = []
    for i, (caption, sample) in enumerate(zip(captions, report.to_dict()["samples"], strict=True)):
        _, alone = draw(pipe, [caption], [i], steps, tick)
        with enable(pipe, error_budget=budget):
            _, faster = draw(pipe, [caption], [i], steps, tick)
        rows.append(
            Row(
                caption,
                work=sample["computed_fraction"],
                estimated_error=sample["estimated_error"],
                true_error=float(errors[i]),
                budget=budget,
                mac_speedup=1 / sample["computed_fraction"],
                wall_speedup=alone / faster,
                attributes_uncached=float(attributes_before[i]),
                attributes_cached=float(attributes_after[i]),
                decisions=report.strip(i),
            )
        )
    return Outcome(rows, before, after, report, uncached_seconds / cached_seconds)


def ticks(steps: int) -> int:
    return steps * (2 + 2 * len(CAPTIONS))


def picture(outcome: Outcome, path: Path) -> None:
    """Per caption: uncached, cached, difference x10, and the decisions over the steps."""
    figure = Figure(figsize=(11, 1.35 * len(outcome.rows)))
    axes = figure.subplots(len(outcome.rows), 4, width_ratios=[1, 1, 1, 6])
    for i, row_axes in enumerate(axes):
        _show_pictures(row_axes[:3], outcome.uncached[i], outcome.cached[i])
        _show_decisions(row_axes[3], outcome.rows[i], outcome.actions(i))
        for axis in row_axes:
            axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, title in zip(axes[0], ("uncached", "dicache", "difference x10"), strict=False):
        axis.set_title(title, fontsize=8)
    patches, names = [Patch(color=colour) for colour in COLOURS.values()], [action.name.lower() for action in COLOURS]
    figure.legend(patches, names, loc="lower right", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=130)


def _show_pictures(axes: Sequence[Axes], uncached: Tensor, cached: Tensor) -> None:
    difference = ((cached - uncached).abs() * 10).clamp(0, 1)
    for axis, image in zip(axes, (uncached, cached, difference), strict=True):
        axis.imshow(image.permute(1, 2, 0).numpy())


def _show_decisions(axis: Axes, row: Row, actions: Sequence[Action]) -> None:
    axis.bar(range(len(actions)), 1, width=0.9, color=[COLOURS[action] for action in actions])
    axis.set(xlim=(-0.6, len(actions) - 0.4), ylim=(0, 1))
    error = f"error {row.true_error:.3f} (estimated {row.estimated_error:.3f}, budget {row.budget:g})"
    words = f"work {row.work:.0%}   {error}   {row.mac_speedup:.2f}x"
    axis.set_title(f"{textwrap.fill(row.caption, 130)}\n{words}", fontsize=6.5, loc="left")
