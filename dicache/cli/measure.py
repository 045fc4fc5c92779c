"""The commands `calibrate`, `tune` and `search`, which measure on prompts and write a file. What is heavy is imported
once a command runs.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from dicache.cli.arguments import (
    AsJson,
    Checkpoint,
    Yes,
    check_folder,
    check_json,
    check_page,
    check_picture,
    prompts_of,
    stoppable,
)
from dicache.cli.options import PipelineCall, Source, Texts, spread
from dicache.errors import FileError, ModeError
from dicache.finders.by_name import FILLS, check, finders, options_of
from dicache.reference.scenes import prompts as scenes

File = Annotated[
    Path | None,
    typer.Argument(
        metavar="PROMPTS", help="A text file, one prompt a line, like those you will run.", show_default=False
    ),
]
TUNED_ON = 24
"""Prompts of ours that a schedule is tuned on where none are named."""
LOOKED_AT = 4
"""Prompts that are shown where no number is named."""


@spread
def calibrate(
    file: File = None,
    *,
    out: Annotated[Path, typer.Option(help="The profile; a .safetensors of the same name is written beside it.")],
    metric: Annotated[str, typer.Option(help="latent, psnr, ssim, or several with commas.")] = "latent",
    fine: Annotated[bool, typer.Option("--fine", help="Try twice as many levels: more of a budget is used.")] = False,
    texts: Texts,
    source: Source,
    call: PipelineCall,
    checkpoint: Checkpoint = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Measure a profile, so that a budget can be a promise: 8 prompts or more, 22 for a confidence of 0.9.

    Says before it starts how much is drawn, how long that takes, and what more prompts would buy.
    """
    lines = prompts_of(texts, file)
    if not lines:
        raise FileError("there are no prompts. Give a text file with one prompt a line, like those you will run.")
    check_json(out)
    check_folder(checkpoint)
    with stoppable(checkpoint):
        from dicache.cli.load import ready, refusals_of
        from dicache.cli.plans import Approval, use_lines
        from dicache.measuring.calibrate import LEVELS, finer
        from dicache.measuring.calibrate import calibrate as measure

        prepared = ready(source, call)
        with refusals_of(prepared.pipe):
            profile = measure(
                prepared.pipe,
                lines,
                steps=prepared.steps,
                seed=call.seed,
                batch=call.batch,
                metric=metric.split(","),
                call=prepared.call,
                levels=finer(LEVELS) if fine else LEVELS,
                checkpoint=checkpoint,
                progress=not as_json,
                approve=Approval(ask=not yes, quiet=as_json),
            )
        profile.save(out)
    facts = {"profile": profile.name, "metrics": profile.metrics, **profile.about}
    if as_json:
        print(json.dumps(facts))
        return
    print("\n".join([f"{profile.name}, tested on {profile.prompts} prompts", *use_lines(profile), f"wrote {out}"]))


@spread
def tune(
    file: File = None,
    *,
    out: Annotated[Path | None, typer.Option(help="The schedule, for `dicache generate --schedule`.")] = None,
    show: Annotated[
        Path | None,
        typer.Option(
            help="Instead: the prompts at five error budgets side by side, to choose one by looking; a .png, and an "
            ".html of the same name."
        ),
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(min=1.0, help="How much less to compute; 2 where nothing is asked.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="Instead: error that it may have, in the mean.")] = None,
    texts: Texts,
    source: Source,
    call: PipelineCall,
    checkpoint: Checkpoint = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Find a good schedule from two dozen prompts: steps placed by a race, slopes fitted along the run.

    It says beforehand what it takes, and at the end what it bought over `--speedup` alone. With --show no
    schedule is looked for: four of the prompts (--first for others) are drawn uncached and at five budgets.
    """
    if speedup is not None and budget is not None:
        raise ModeError("--speedup and --budget are both given. Expected one of them.")
    lines = prompts_of(texts, file)
    if show is not None:
        if [option for option in (out, speedup, budget, checkpoint) if option is not None]:
            raise ModeError("--show looks for no schedule: leave out --out, --speedup, --budget and --checkpoint.")
        _show(show, lines, texts, source, call, as_json=as_json)
        return
    if out is None:
        raise ModeError("there is nothing to write. Give --out FILE.json for a schedule, or --show FILE.png.")
    check_json(out)
    check_folder(checkpoint)
    check("multistep", {}, "evaluation", budget, None if budget is not None else 1 / (speedup or 2.0))
    lines = lines or _ours(source, TUNED_ON if texts.first is None else texts.first, call.seed)
    with stoppable(checkpoint):
        from dicache.cli.plans import Approval
        from dicache.cli.searching import show_answer, tune_for

        asked = Approval(ask=not yes, quiet=as_json)
        answer = tune_for(
            None if budget is not None else speedup or 2.0, budget, lines, source, call, checkpoint, asked
        )
        show_answer(answer, out, as_json=as_json)


def _show(out: Path, lines: list[str], texts: Texts, source: Source, call: PipelineCall, *, as_json: bool) -> None:
    """The first prompts at five budgets."""
    (check_page if out.suffix == ".html" else check_picture)(out.with_suffix(out.suffix.lower()))
    count = texts.first or LOOKED_AT
    lines = lines[:count] or _ours(source, count, call.seed)
    with stoppable(None, ""):
        from dicache.cli.drawing import columns_of, write_choice
        from dicache.cli.load import ready

        prepared = ready(source, call)
        columns = columns_of(prepared, lines, call, quiet=as_json)
        title = f"{type(prepared.pipe).__name__}, {prepared.steps} steps: {len(lines)} prompts at five budgets"
        write_choice(columns, lines, out, title, as_json=as_json)


def _listed() -> str:
    """A line for each finder."""
    described = sorted(finders().items())
    return "\n\n".join(f"{name}: {about.summary}" for name, about in described)


@spread
def search(
    *,
    finder: Annotated[str, typer.Option(help="Which, of those above.")],
    out: Annotated[Path, typer.Option(help="The schedule, or the front; a plot of it is written beside it.")],
    sites: Annotated[str, typer.Option(help="What is decided on its own: evaluation, tail, blocks, sublayers.")] = (
        "evaluation"
    ),
    cost: Annotated[float | None, typer.Option(help="Share of the uncached work; without, the whole front.")] = None,
    budget: Annotated[float | None, typer.Option(help="Error that the schedule may have, in the mean.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help=f"One of the finder's own, as trials=50 or fill={FILLS[0]}; repeatable.")
    ] = None,
    texts: Texts,
    captions: Annotated[int, typer.Option(min=1, help="How many captions of ours, without prompts.")] = 4,
    source: Source,
    call: PipelineCall,
    checkpoint: Checkpoint = None,
    as_json: AsJson = False,
) -> None:
    check_json(out)
    check_folder(checkpoint)
    options = options_of(option or [])
    check(finder, options, sites, budget, cost)
    lines = prompts_of(texts) or _ours(source, captions, call.seed)
    with stoppable(checkpoint):
        from dicache.cli.searching import SearchAim, search_for, show_answer

        wanted = SearchAim(finder, options, sites, budget, cost)
        show_answer(search_for(wanted, lines, source, call, checkpoint, quiet=as_json), out, as_json=as_json)


search.__doc__ = f"""Find a schedule: a table of what computes at which step, for `dicache generate --schedule`.

The finders:

{_listed()}
"""


def _ours(source: Source, count: int, seed: int) -> list[str]:
    """Captions of the model that ships. Raises FileError for another model: it needs prompts of its own."""
    if source.model is not None:
        raise FileError("there are no prompts. Give --prompts FILE, one prompt a line, like those you will run.")
    return list(scenes("calibration", count, seed=seed))


__all__ = ["calibrate", "search", "tune"]
