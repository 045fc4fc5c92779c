"""The command `report`: a report that was saved, printed again or made into a page or a picture."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dicache.cli.arguments import AsJson, check_page, check_picture


def report(
    file: Annotated[Path, typer.Argument(help="What `dicache generate --report` or Report.save wrote.")],
    html: Annotated[Path | None, typer.Option(help="A page to make of it.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture of its decisions and errors.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a saved report again, or make a page or a picture of it."""
    if html is not None:
        check_page(html)
    if plot is not None:
        check_picture(plot)
    from dicache.errors import FileError
    from dicache.files.atomic import replacing, write_text
    from dicache.files.checked import refusing
    from dicache.reporting.page import figure, page
    from dicache.reporting.text import load_report, printed

    facts = load_report(file)
    with refusing(FileError, f"no page can be made of {file}", "Expected what Report.save wrote."):
        text, drawn = page(facts) if html else "", figure(facts) if plot else None
    if html is not None:
        write_text(html, text)
    if plot is not None and drawn is not None:
        with replacing(plot) as picture:
            drawn.savefig(picture)
    print(json.dumps(facts) if as_json else printed(facts).rstrip())
    written = [str(path) for path in (html, plot) if path is not None]
    if written and not as_json:
        print(f"wrote {', '.join(written)}")
