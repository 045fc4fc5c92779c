"""The command `inspect`: what dicache sees in a pipeline. What is heavy is imported once it runs."""

import json

from dicache.cli.arguments import AsJson, console, prompts_of, stoppable
from dicache.cli.options import Call, Source, Texts, spread
from dicache.reference.scenes import prompts as scenes


@spread
def inspect(*, source: Source, texts: Texts, call: Call, as_json: AsJson = False) -> None:
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
