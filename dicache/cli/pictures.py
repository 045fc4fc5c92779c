"""Commands that draw: `demo` and `generate`. What is heavy is imported once a command runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dicache.cli.arguments import AsJson, Budget, Guidance, check_budget, check_picture, progress
from dicache.reference.scenes import parse

if TYPE_CHECKING:
    from dicache.cli.demo import Outcome


def demo(
    error_budget: Budget = 0.05,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 28,
    out: Annotated[Path, typer.Option(help="The picture; a .json of the same name is written beside it.")] = Path(
        "demo.png"
    ),
    as_json: AsJson = False,
) -> None:
    """Draw eight captions from easy to hard, uncached and cached, and show what each cost and lost."""
    check_budget(error_budget)
    check_picture(out)
    from dicache.cli import demo as demonstration
    from dicache.files.atomic import replacing, write_text

    with progress(as_json) as bar:
        task = bar.add_task("drawing", total=demonstration.ticks(steps))
        outcome = demonstration.run(error_budget, steps=steps, tick=lambda: bar.advance(task))
    facts = outcome.to_dict()
    with replacing(out) as picture:
        demonstration.picture(outcome, picture)
    write_text(out.with_suffix(".json"), json.dumps(facts, indent=1))
    if as_json:
        print(json.dumps(facts))
        return
    console = Console()
    console.print(_table(outcome))
    for warning in outcome.report.warnings:
        console.print(f"note: {warning}")
    console.print(f"wrote {out} and {out.with_suffix('.json')}")


def _table(outcome: "Outcome") -> Table:
    table = Table(
        title=f"{outcome.report.compute_speedup:.2f}x fewer MACs, {outcome.wall_speedup:.2f}x less time for the batch",
        title_justify="left",
    )
    for column in ("caption", "work", "estimated", "true error", "budget", "MACs", "time"):
        table.add_column(column, overflow="fold")
    for row in outcome.rows:
        errors = f"{row.estimated_error:.4f}", f"{row.true_error:.4f}", f"{row.budget:g}"
        table.add_row(row.caption, f"{row.work:.0%}", *errors, f"{row.mac_speedup:.2f}x", f"{row.wall_speedup:.2f}x")
    return table


def generate(
    prompt: Annotated[str, typer.Option(help="A caption, for example 'center large red circle on white background'.")],
    error_budget: Budget = 0.05,
    out: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path("image.png"),
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 28,
    guidance: Guidance = 3.5,
    profile: Annotated[
        str | None,
        typer.Option(help="What `dicache calibrate` wrote, or nearest; without, one that ships, if it fits."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Share of pictures for which the budget is promised, as 0.9; needs a profile.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw one caption with the reference model, within an error budget."""
    parse(prompt)
    check_budget(error_budget)
    check_picture(out)
    from dicache.api import enable
    from dicache.files.atomic import replacing
    from dicache.reference.assembly import pipeline
    from dicache.reference.draw import draw, pictures

    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    cache = enable(pipe, error_budget=error_budget, confidence=confidence, profile=profile)
    with progress(as_json) as bar, cache:
        task = bar.add_task("drawing", total=steps)
        latents, _ = draw(pipe, [prompt], [seed], steps, lambda: bar.advance(task), guidance)
    image = pipe.image_processor.numpy_to_pil(pictures(pipe, latents).permute(0, 2, 3, 1).numpy())[0]
    with replacing(out) as picture:
        image.resize((256, 256), resample=0).save(picture)
    print(json.dumps(cache.report().to_dict()) if as_json else f"{cache.report()}wrote {out}")
