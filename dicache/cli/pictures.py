"""The command `demo`. What is heavy is imported once it runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dicache.cli.arguments import AsJson, Budget, check_budget, check_picture, console
from dicache.reporting.progress import progress

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

    with progress(not as_json) as bar:
        task = bar.add_task("drawing", total=demonstration.ticks(steps))
        outcome = demonstration.run(error_budget, steps=steps, tick=lambda: bar.advance(task))
    facts = outcome.to_dict()
    with replacing(out) as picture:
        demonstration.picture(outcome, picture)
    write_text(out.with_suffix(".json"), json.dumps(facts, indent=1))
    if as_json:
        print(json.dumps(facts))
        return
    shown = console()
    shown.print(_table(outcome))
    for warning in outcome.report.warnings:
        shown.print(f"note: {warning}")
    shown.print(f"wrote {out} and {out.with_suffix('.json')}")


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
