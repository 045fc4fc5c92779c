"""The command line: `dicache demo | generate | calibrate | search | models | doctor`. A user's mistake is one clear
line and exit code 2.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dicache.errors import DicacheError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Faster diffusion inference within an error budget.",
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Budget = Annotated[float, typer.Option(help="Relative L2 error the final latent may have.")]


def main() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        app()
    except DicacheError as error:
        print(f"dicache: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def demo(
    error_budget: Budget = 0.05,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 28,
    out: Annotated[Path, typer.Option(help="The picture; a .json of the same name is written beside it.")] = Path(
        "demo.png"
    ),
    as_json: AsJson = False,
) -> None:
    """Draw eight captions from easy to hard, uncached and cached, and show what each cost and lost."""
    from dicache.cli import demo as demonstration
    from dicache.planning.budget import validate

    validate(error_budget)
    _writable(out)
    with _progress(as_json) as progress:
        task = progress.add_task("drawing", total=demonstration.ticks(steps))
        outcome = demonstration.run(error_budget, steps=steps, tick=lambda: progress.advance(task))
    demonstration.picture(outcome, out)
    facts = outcome.to_dict()
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1))
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(
        title=f"{outcome.report.compute_speedup:.2f}x fewer MACs, {outcome.wall_speedup:.2f}x less time for the batch",
        title_justify="left",
    )
    for column in ("caption", "work", "estimated", "true error", "budget", "MACs", "time"):
        table.add_column(column, overflow="fold")
    for row in outcome.rows:
        numbers = (
            f"{row.work:.0%}",
            f"{row.estimated_error:.4f}",
            f"{row.true_error:.4f}",
            f"{row.budget:g}",
            f"{row.mac_speedup:.2f}x",
            f"{row.wall_speedup:.2f}x",
        )
        table.add_row(row.caption, *numbers)
    console = Console()
    console.print(table)
    for warning in outcome.report.warnings:
        console.print(f"note: {warning}")
    console.print(f"wrote {out} and {out.with_suffix('.json')}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="A caption, for example 'center large red circle on white background'.")],
    error_budget: Budget = 0.05,
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("image.png"),
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 28,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw one caption with the reference model, within an error budget."""
    from dicache.api import enable
    from dicache.cli.demo import draw, pictures
    from dicache.planning.budget import validate
    from dicache.reference.assembly import pipeline
    from dicache.reference.scenes import parse

    parse(prompt)
    validate(error_budget)
    _writable(out)
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    with _progress(as_json) as progress, enable(pipe, error_budget=error_budget) as cache:
        task = progress.add_task("drawing", total=steps)
        latents, _ = draw(pipe, [prompt], [seed], steps, lambda: progress.advance(task))
    image = pipe.image_processor.numpy_to_pil(pictures(pipe, latents).permute(0, 2, 3, 1).numpy())[0]
    image.resize((256, 256), resample=0).save(out)
    print(json.dumps(cache.report().to_dict()) if as_json else f"{cache.report()}wrote {out}")


@app.command()
def calibrate(
    prompts: Annotated[Path, typer.Argument(help="A text file, one prompt a line, like those you will run.")],
    out: Annotated[Path, typer.Option(help="The profile; a .safetensors of the same name is written beside it.")],
    steps: Annotated[int, typer.Option(min=6, help="Denoising steps.")] = 28,
    guidance: Annotated[float, typer.Option(min=1.0, help="Guidance scale; 1 for none.")] = 3.5,
    seed: Annotated[int, typer.Option(min=0, max=2**31)] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = 8,
    metric: Annotated[str, typer.Option(help="latent, psnr, ssim, or several with commas.")] = "latent",
    fine: Annotated[bool, typer.Option("--fine", help="Try twice as many levels: more of a budget is used.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="A folder; killed, the same command goes on there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a profile of the reference model, so that a budget on it can be a promise."""
    from dicache.measuring.calibrate import LEVELS, finer
    from dicache.measuring.calibrate import calibrate as measure
    from dicache.reference.assembly import pipeline

    lines = _lines(prompts)
    if out.suffix != ".json" or not out.parent.is_dir():
        raise typer.BadParameter(f"{out} cannot be written. Expected a .json file in a folder that exists.")
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    profile = measure(
        pipe,
        lines,
        steps=steps,
        seed=seed,
        batch=batch,
        metric=metric.split(","),
        call={"negative_prompt": "", "true_cfg_scale": guidance} if guidance > 1 else {},
        levels=finer(LEVELS) if fine else LEVELS,
        checkpoint=checkpoint,
        progress=not as_json,
    )
    profile.save(out)
    facts = {"profile": profile.name, "metrics": profile.metrics, **profile.about}
    print(json.dumps(facts) if as_json else f"{profile.name}: {profile.about['cost']}, wrote {out}")


@app.command()
def models(
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/models.md.")] = False,
) -> None:
    """List every denoiser class of the installed diffusers: how it is wrapped, or why it is refused."""
    from dicache.models.catalogue import catalogue, markdown

    if as_json and as_markdown:
        raise typer.BadParameter("--json and --markdown are given. Expected one of them.")
    entries = catalogue()
    if as_json:
        print(json.dumps([entry._asdict() for entry in entries]))
        return
    if as_markdown:
        print(markdown(entries), end="")
        return
    table = Table()
    for column in ("model", "batch", "inside", "between its blocks, or why it is refused"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        table.add_row(entry.model, entry.batch, entry.inside, entry.reason or entry.between)
    Console().print(table)


@app.command()
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
    guidance: Annotated[float, typer.Option(min=1.0, help="Guidance scale; 1 for none.")] = 3.5,
    seed: Annotated[int, typer.Option(min=0, max=2**31)] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = 8,
    checkpoint: Annotated[Path | None, typer.Option(help="A folder; killed, the same command goes on there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find a schedule of the reference model: a table of what computes at which step, for enable(schedule=...)."""
    from dicache.finders.by_name import made, options_of, sites_named
    from dicache.measuring.schedule_measurements import Calibration
    from dicache.reference.assembly import pipeline
    from dicache.reference.scenes import prompts as scenes
    from dicache.reporting.front_plot import figure
    from dicache.schedules.action_table import written
    from dicache.schedules.pareto import ParetoSet

    if out.suffix != ".json" or not out.parent.is_dir():
        raise typer.BadParameter(f"{out} cannot be written. Expected a .json file in a folder that exists.")
    lines = scenes("calibration", captions, seed=seed) if prompts is None else _lines(prompts)
    chosen = made(finder, options_of(option or []), checkpoint=checkpoint)
    decided, pipe = sites_named(sites), pipeline()
    pipe.set_progress_bar_config(disable=True)
    call = {"negative_prompt": "", "true_cfg_scale": guidance} if guidance > 1 else {}
    with _progress(as_json) as progress:
        tasks: dict[str, Any] = {}

        def tick(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        calibration = Calibration(lines, steps, seed=seed, batch=batch, call=call, tick=tick)
        found = chosen.find(pipe, decided, calibration, budget=budget, cost=cost, seed=seed)
    found.save(out)
    members = found.members if isinstance(found, ParetoSet) else (found,)
    if isinstance(found, ParetoSet):
        figure({finder: found}).savefig(out.with_suffix(".png"))
    if as_json:
        print(json.dumps([{"work": s.work, "error": s.error} for s in members]))
        return
    table = Table("work", "error", "schedules of " + finder)
    for s in members:
        shown = "".join(written(s.table)) if s.table.shape[1] == 1 else f"{s.table.shape[1]} sites"
        table.add_row(f"{s.work:.3f}", f"{s.error:.4f}", shown)
    Console().print(table)
    print(f"wrote {out}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say which torch, device, extension path and reference model are in use."""
    from dicache.cli.doctor import examine

    facts = examine()
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value if value is not None else "missing"))
    Console().print(table)


def _lines(prompts: Path) -> list[str]:
    if not prompts.is_file():
        raise typer.BadParameter(f"{prompts} does not exist. Expected a text file with one prompt a line.")
    return [line.strip() for line in prompts.read_text().splitlines() if line.strip()]


def _progress(quiet: bool) -> Progress:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True), disable=quiet)


def _writable(path: Path) -> None:
    """Fail before the work, not after it."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise typer.BadParameter(f"{path} is not a picture's name. Expected .png, .jpg or .webp.")
    if path.is_dir() or (not os.access(path.parent, os.W_OK | os.F_OK) and path.parent.is_dir()):
        raise typer.BadParameter(f"{path} cannot be written.")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"the folder {path.parent} does not exist.")
