"""Is the budget kept without a profile, and what does it save? `python -m dicache.bench.studies.budgets`

64 test captions in batches of 8, the same seeds uncached and at every budget: executed work, true error of the final
latent, its estimate, and how many of the caption's attributes the picture shows. The discretisation error of the
uncached run itself, against one of four times the steps, is printed for scale, and so is the user's free alternative,
an uncached run with fewer steps.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import FluxPipeline
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from dicache.api import enable
from dicache.defaults import for_budget
from dicache.files.atomic import write_text
from dicache.promise.metrics import relative_error
from dicache.reference.assembly import STEPS, pipeline
from dicache.reference.draw import draw, pictures
from dicache.reference.reader import Reader
from dicache.reference.scenes import prompts

BATCH = 8
BUDGETS = (0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Line:
    """One way of drawing all captions, against the uncached run of the same seeds."""

    name: str
    work: float
    """Executed MACs over those of the uncached run."""
    median: float
    p90: float
    estimated: float | None
    within: float | None
    """Share of captions whose true error is within the budget."""
    attributes: float
    patterns: int | None
    """Fewest different decision patterns in any batch."""


class Bench:
    """Draws all captions, in batches, and reads the pictures."""

    pipe: FluxPipeline
    captions: list[str]
    steps: int
    progress: Progress

    def __init__(self, pipe: FluxPipeline, captions: list[str], steps: int, progress: Progress) -> None:
        self.pipe, self.captions, self.steps, self.progress = pipe, captions, steps, progress
        self.reader: Reader = Reader.shipped()

    def batches(self) -> list[list[int]]:
        indices = list(range(len(self.captions)))
        return [indices[i : i + BATCH] for i in range(0, len(indices), BATCH)]

    def draw(self, batch: list[int], steps: int) -> Tensor:
        return draw(self.pipe, [self.captions[i] for i in batch], batch, steps)[0]

    def uncached(self, steps: int) -> Tensor:
        task = self.progress.add_task(f"uncached, {steps} steps", total=len(self.captions))
        parts = []
        for batch in self.batches():
            parts.append(self.draw(batch, steps))
            self.progress.advance(task, len(batch))
        return torch.cat(parts)

    def line(self, name: str, work: float, latents: Tensor, reference: Tensor) -> Line:
        errors = relative_error(latents, reference)
        return Line(
            name, work, errors.median().item(), errors.quantile(0.9).item(), None, None, self.attributes(latents), None
        )

    def attributes(self, latents: Tensor) -> float:
        return self.reader.score(pictures(self.pipe, latents), self.captions).mean().item()

    def budget(self, budget: float, reference: Tensor) -> Line:
        task = self.progress.add_task(f"error_budget={budget}", total=len(self.captions))
        parts, executed, uncached, estimates, patterns = [], 0.0, 0.0, [], []
        for batch in self.batches():
            with enable(self.pipe, config=for_budget(budget)) as cache:
                parts.append(self.draw(batch, self.steps))
            report = cache.report()
            facts = report.to_dict()
            executed, uncached = executed + facts["executed_macs"], uncached + facts["uncached_macs"]
            estimates += [sample["estimated_error"] for sample in facts["samples"]]
            patterns.append(len({report.strip(i) for i in range(len(batch))}))
            self.progress.advance(task, len(batch))
        latents = torch.cat(parts)
        errors = relative_error(latents, reference)
        within = (errors <= budget).float().mean().item()
        numbers = (
            executed / uncached,
            errors.median().item(),
            errors.quantile(0.9).item(),
            torch.tensor(estimates).median().item(),
            within,
        )
        return Line(f"error_budget={budget}", *numbers, self.attributes(latents), min(patterns))


def measure(captions: list[str], steps: int, shift: float, progress: Progress) -> list[Line]:
    pipe = pipeline(shift=shift)
    pipe.set_progress_bar_config(disable=True)
    bench = Bench(pipe, captions, steps, progress)
    reference = bench.uncached(steps)
    fine = bench.uncached(4 * steps)
    lines = [
        bench.line(f"uncached, {steps} steps", 1.0, reference, reference),
        bench.line(f"discretisation: {4 * steps} steps", 4.0, fine, reference),
        bench.line(f"fewer steps: {steps // 2}", (steps // 2) / steps, bench.uncached(steps // 2), reference),
    ]
    return [*lines, *(bench.budget(budget, reference) for budget in BUDGETS)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Is the budget kept, and what does it save?")
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--shift", type=float, default=1.0, help="bend of the sigmas; above 1, more steps at high noise"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    with Progress(console=Console(stderr=True)) as progress:
        lines = measure(prompts("test", args.captions, seed=0), args.steps, args.shift, progress)
    table = Table(title=f"{args.captions} test captions, {args.steps} steps, shift {args.shift:g}")
    for column in ("", "work", "median error", "90th pct", "estimated", "within", "attributes", "patterns"):
        table.add_column(column)
    for line in lines:
        optional = [
            "-" if value is None else text
            for value, text in (
                (line.estimated, f"{line.estimated or 0:.4f}"),
                (line.within, f"{line.within or 0:.0%}"),
            )
        ]
        patterns = "-" if line.patterns is None else str(line.patterns)
        table.add_row(
            line.name,
            f"{line.work:.3f}",
            f"{line.median:.4f}",
            f"{line.p90:.4f}",
            *optional,
            f"{line.attributes:.3f}",
            patterns,
        )
    Console(width=120).print(table)
    if args.json:
        write_text(args.json, json.dumps([asdict(line) for line in lines], indent=1))


if __name__ == "__main__":
    main()
