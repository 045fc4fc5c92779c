"""The command line: `dicache demo | generate | doctor`. A user's mistake is one clear line and exit code 2."""

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
    from dicache import demo as demonstration
    from dicache.budget import validate

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
    from dicache.budget import validate
    from dicache.demo import draw, pictures
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
def doctor(as_json: AsJson = False) -> None:
    """Say which torch, device, extension path and reference model are in use."""
    from dicache.doctor import examine

    facts = examine()
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, str(value if value is not None else "missing"))
    Console().print(table)


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
