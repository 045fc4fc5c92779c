"""Commands that measure on prompts and write a file: `calibrate` and `search`. What is heavy is imported once a command
runs.
"""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dicache.cli.arguments import (
    AsJson,
    BatchSize,
    Checkpoint,
    Guidance,
    Seed,
    check_folder,
    check_json,
    guided,
    lines_of,
    progress,
    stoppable,
)
from dicache.errors import DicacheWarning
from dicache.finders.by_name import check, make, options_of, sites_named
from dicache.reference.scenes import prompts as scenes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dicache.schedules.schedule import Schedule


def calibrate(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="A text file, one prompt a line, like those you will run: 8 or more, 22 for a confidence of 0.9."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The profile; a .safetensors of the same name is written beside it.")],
    steps: Annotated[int, typer.Option(min=6, help="Denoising steps, 6 or more.")] = 28,
    guidance: Guidance = 3.5,
    seed: Seed = 0,
    batch: BatchSize = 8,
    metric: Annotated[str, typer.Option(help="latent, psnr, ssim, or several with commas.")] = "latent",
    fine: Annotated[bool, typer.Option("--fine", help="Try twice as many levels: more of a budget is used.")] = False,
    checkpoint: Checkpoint = None,
    as_json: AsJson = False,
) -> None:
    """Measure a profile of the reference model, so that a budget on it can be a promise."""
    lines = lines_of(prompts)
    check_json(out)
    check_folder(checkpoint)
    with stoppable(checkpoint):
        from dicache.measuring.calibrate import LEVELS, finer
        from dicache.measuring.calibrate import calibrate as measure
        from dicache.reference.assembly import pipeline

        profile = measure(
            pipeline(),
            lines,
            steps=steps,
            seed=seed,
            batch=batch,
            metric=metric.split(","),
            call=guided(guidance),
            levels=finer(LEVELS) if fine else LEVELS,
            checkpoint=checkpoint,
            progress=not as_json,
        )
        profile.save(out)
    facts = {"profile": profile.name, "metrics": profile.metrics, **profile.about}
    print(json.dumps(facts) if as_json else f"{profile.name}: {profile.about['cost']}, wrote {out}")


def search(
    finder: Annotated[str, typer.Option(help="Which: fixed, smoothcache, optimal, annealing, ecad, ...")],
    out: Annotated[Path, typer.Option(help="The schedule, or the front; a plot of it is written beside it.")],
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 20,
    sites: Annotated[str, typer.Option(help="What is decided on its own: evaluation, tail, blocks, sublayers.")] = (
        "evaluation"
    ),
    cost: Annotated[float | None, typer.Option(help="Share of the uncached work; without, the whole front.")] = None,
    budget: Annotated[float | None, typer.Option(help="Error that the schedule may have, in the mean.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="One of the finder's own, as trials=50; repeatable.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file, one prompt a line; else captions of ours.")] = None,
    captions: Annotated[int, typer.Option(min=1, help="How many captions of ours, without prompts.")] = 4,
    guidance: Guidance = 3.5,
    seed: Seed = 0,
    batch: BatchSize = 8,
    checkpoint: Checkpoint = None,
    as_json: AsJson = False,
) -> None:
    """Find a schedule of the reference model: a table of what computes at which step, for enable(schedule=...)."""
    check_json(out)
    check_folder(checkpoint)
    options = options_of(option or [])
    check(finder, options, sites, budget, cost)
    lines = scenes("calibration", captions, seed=seed) if prompts is None else lines_of(prompts)
    with stoppable(checkpoint):
        from dicache.files.atomic import replacing
        from dicache.measuring.schedule_measurements import Calibration
        from dicache.reference.assembly import pipeline
        from dicache.reporting.front_plot import figure
        from dicache.schedules.pareto import ParetoSet

        method, pipe = make(finder, options), pipeline()
        pipe.set_progress_bar_config(disable=True)
        with progress(as_json) as bar, warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", DicacheWarning)
            drawn = Calibration(lines, steps, seed=seed, batch=batch, call=guided(guidance), tick=_ticking(bar))
            calibration = replace(drawn, checkpoint=checkpoint)
            result = method.find(pipe, sites_named(sites), calibration, budget=budget, cost=cost, seed=seed)
        result.save(out)
        members = result.members if isinstance(result, ParetoSet) else (result,)
        if isinstance(result, ParetoSet):
            with replacing(out.with_suffix(".png")) as picture:
                figure({finder: result}).savefig(picture)
    for warning in noted:
        print(f"note: {warning.message}", file=sys.stderr)
    if as_json:
        print(json.dumps([{"work": schedule.work, "error": schedule.error} for schedule in members]))
        return
    Console().print(_table(finder, members))
    print(f"wrote {out}")


def _ticking(bar: Progress) -> "Callable[[str, int, int], None]":
    """Shows every kind of work on a line of its own."""
    tasks: dict[str, Any] = {}

    def tick(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what)
        bar.update(tasks[what], completed=done, total=total)

    return tick


def _table(finder: str, members: "Sequence[Schedule]") -> Table:
    table = Table("work", "error", "schedules of " + finder)
    for schedule in members:
        sites = schedule.table.shape[1]
        shown = schedule.letters if sites == 1 else f"{sites} sites"
        table.add_row(f"{schedule.work:.3f}", f"{schedule.error:.4f}", shown)
    return table
