"""The command line: `dicache demo | generate | inspect | tune | calibrate | search | report | models | doctor`. A
user's mistake is one clear line and exit code 2.
"""

import json
import logging
import os
import sys
from typing import Annotated

import typer
from rich.table import Table

from dicache._version import __version__
from dicache.cli.arguments import INTERRUPTED, AsJson, console
from dicache.cli.generate import generate
from dicache.cli.looking import inspect, report
from dicache.cli.measure import calibrate, search, tune
from dicache.cli.pictures import demo
from dicache.errors import DicacheError

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
    try:
        app()
    except DicacheError as error:
        print(f"dicache: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dicache: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


for command in (demo, generate, inspect, tune, calibrate, report):
    app.command()(command)


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
    console().print(table)


app.command()(search)


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
    console().print(table)
