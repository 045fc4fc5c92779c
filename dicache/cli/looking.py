"""The commands that look: `inspect` at a pipeline, `report` at what a run left; and `share`, which shows others what
was measured. What is heavy is imported then.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from dicache.cli.arguments import AsJson, check_page, check_picture, console, prompts_of, stoppable
from dicache.cli.options import PipelineCall, Source, Texts, spread
from dicache.errors import FileError
from dicache.reference.scenes import prompts as scenes


@spread
def inspect(*, source: Source, texts: Texts, call: PipelineCall, as_json: AsJson = False) -> None:
    """Say what dicache sees in a pipeline: denoisers, sites, solver, costs, memory, and what is refused and why.

    Two steps of a run are drawn for it. Where the pipeline needs more than a prompt, give it with --argument.
    """
    lines = prompts_of(texts) or (list(scenes("test", 1)) if source.model is None else ["a photo of a cat"])
    with stoppable(None, ""):
        from dicache.cli.load import ready
        from dicache.cli.sight import seen_in, tables

        facts = seen_in(ready(source, call), lines[:1], call.seed)
    if as_json:
        print(json.dumps(facts))
        return
    shown = console()
    for table in tables(facts):
        shown.print(table)
    for note in facts["notes"]:
        shown.print(f"note: {note}")


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


def share(
    file: Annotated[Path, typer.Argument(help="What `dicache calibrate`, `dicache tune` or `dicache search` wrote.")],
    folder: Annotated[Path, typer.Argument(help="Where it goes, with a model card; made where it is not.")],
    base_model: Annotated[str | None, typer.Option(help="The repository of the model, for the card.")] = None,
    prompts: Annotated[str | None, typer.Option(help="What the prompts were, in words, for the card.")] = None,
) -> None:
    """Write a profile, a schedule or several into a folder with a model card, as a repository of the Hugging Face hub
    has it.
    """
    if not file.is_file():
        raise FileError(f"{file} does not exist. Expected a profile or a schedule that was saved.")
    from dicache.files.checked import read_json, refusing
    from dicache.promise.profile import Profile
    from dicache.schedules.pareto import ParetoSet
    from dicache.schedules.schedule import Schedule

    with refusing(FileError, f"{file} is neither a profile nor a schedule", "Expected what dicache saved as one."):
        kind = read_json(file).text("format").partition("/")[0]
    made: dict[str, type[Profile] | type[ParetoSet]] = {"dicache.profile": Profile, "dicache.schedules": ParetoSet}
    shared = made.get(kind, Schedule).load(file)
    shared.share(folder, base_model=base_model, prompts=prompts)
    print(f"wrote {folder}; `hf upload USER/REPOSITORY {folder}` puts it on the hub")
