"""The command line: `dicache demo | generate | serve | inspect | tune | calibrate | search | share | report |
models | doctor`.
A user's mistake is one clear line and exit code 2.
"""

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dicache._version import __version__
from dicache.cli.arguments import INTERRUPTED, AsJson, Budget, check_budget, check_picture, console, interruptible
from dicache.cli.generate import generate
from dicache.cli.looking import inspect, report, share
from dicache.cli.measure import calibrate, search, tune
from dicache.cli.serving import serve, serve_demo
from dicache.errors import DicacheError
from dicache.reporting.progress import progress

if TYPE_CHECKING:
    from dicache.cli.demo import Outcome

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Faster diffusion inference within an error budget.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"dicache {__version__}")
        raise typer.Exit


def main() -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # prompts and paths may hold what it has no letters for
    try:
        app()
    except DicacheError as error:
        print(f"dicache: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a name that is too long, a disk that went away
        what = " ".join(str(error.strerror or error).split())
        print(f"dicache: {what}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dicache: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


@app.command()
@interruptible
def demo(
    error_budget: Budget = 0.05,
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 28,
    out: Annotated[Path, typer.Option(help="The picture; a .json of the same name is written beside it.")] = Path(
        "demo.png"
    ),
    web: Annotated[
        bool, typer.Option("--web", help="Instead: a page with a slider for the budget, on this machine.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 for any that is free.")] = 7860,
    host: Annotated[str, typer.Option(help="Of which of this machine's addresses; 0.0.0.0 for all.")] = "127.0.0.1",
    as_json: AsJson = False,
) -> None:
    """Draw eight captions from easy to hard, uncached and cached, and show what each cost and lost."""
    check_budget(error_budget)
    if web:
        serve_demo(error_budget, steps, host, port)
        return
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


for command in (generate, serve, inspect, tune, calibrate, share, report):
    app.command()(interruptible(command))


@app.command()
@interruptible
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
    console().print(table)


app.command()(interruptible(search))


@app.command()
@interruptible
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
    console().print(table)
