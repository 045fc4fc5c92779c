"""The command `generate`: prompts drawn within an error budget, at a speed-up, or by a schedule. What is heavy is
imported once it runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dicache.cli.arguments import (
    AsJson,
    check_budget,
    check_json_or_page,
    check_outcome,
    prompts_of,
    stoppable,
)
from dicache.cli.options import PipelineCall, Source, Texts, spread
from dicache.errors import CaptionError, ModeError
from dicache.reference.scenes import parse

if TYPE_CHECKING:
    from dicache.cli.drawing import Drawing

DEFAULT = 0.05


@spread
def generate(
    *,
    texts: Texts,
    error_budget: Annotated[
        float | None,
        typer.Option(help=f"Relative L2 error that the final latent may have; {DEFAULT} where nothing else is asked."),
    ] = None,
    speedup: Annotated[float | None, typer.Option(min=1.0, help="Instead: how much less to compute, as 2.")] = None,
    evaluations: Annotated[
        int | None, typer.Option(min=1, help="Instead: how many evaluations to compute, whatever the number of steps.")
    ] = None,
    schedule: Annotated[
        Path | None, typer.Option(help="Instead: what `dicache tune` or `dicache search` wrote.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="What `dicache calibrate` wrote, or nearest; without, one that ships, if it fits."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Share of pictures for which the budget is promised, as 0.9; needs a profile.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The picture; a video goes into a .gif of this name, or .webp; of several numbered.")
    ] = Path("image.png"),
    report: Annotated[
        Path | None, typer.Option(help="The report too: as .json for `dicache report`, or .html.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Draw uncached as well: tells true errors and wall times.")
    ] = False,
    source: Source,
    call: PipelineCall,
    as_json: AsJson = False,
) -> None:
    """Draw prompts within an error budget, with a pipeline of yours or the model that ships."""
    lines = prompts_of(texts)
    if not lines:
        raise CaptionError("there is no prompt, or an empty one. Give --prompt TEXT, or --prompts FILE.")
    if source.model is None:
        for line in lines:
            parse(line)
    asked = _asked(error_budget, speedup, evaluations, schedule, confidence, profile)
    check_outcome(out)
    if report is not None:
        check_json_or_page(report)
    with stoppable(None, ""):
        from dicache.cli.drawing import draw
        from dicache.cli.load import ready
        from dicache.enable_options import MODES, with_settings

        mode = with_settings(source.settings, asked)
        if not any(name in mode for name in MODES):
            mode["error_budget"] = DEFAULT
        run = draw(ready(source, call), lines, mode, call, compare=compare, quiet=as_json)
        written = run.save(out)
        if report is not None:
            written += run.save_report(report)
    print(json.dumps(run.to_dict()) if as_json else _words(run, written))


def _asked(
    error_budget: float | None,
    speedup: float | None,
    evaluations: int | None,
    schedule: Path | None,
    confidence: float | None,
    profile: str | None,
) -> dict[str, Any]:
    """What `enable` is given by options. Raises ModeError for several modes."""
    modes = {"error_budget": error_budget, "speedup": speedup, "evaluations": evaluations, "schedule": schedule}
    asked = {name: value for name, value in modes.items() if value is not None}
    if len(asked) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise ModeError(f"{names} are both given. Expected one of them.")
    if error_budget is not None:
        check_budget(error_budget)
    promise = {"confidence": confidence, "profile": profile}
    return asked | {name: value for name, value in promise.items() if value is not None}


def _words(run: "Drawing", written: list[Path]) -> str:
    return "\n".join((*run.lines(), f"wrote {', '.join(map(str, written))}"))
