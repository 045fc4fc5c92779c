"""`dicache tune --show`: a few prompts uncached and at five budgets, to choose a number by looking."""

import json
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from dicache.api import enable
from dicache.cli.arguments import console
from dicache.cli.drawing import SHOWN, Pictures, advancing, drawn
from dicache.cli.load import Ready, refusals_of
from dicache.cli.options import PipelineCall
from dicache.files.atomic import replacing, write_text
from dicache.promise.metrics import loss, relative_error, resolved
from dicache.reporting.choice import HOW, NAMES, Column, figure, page
from dicache.reporting.progress import progress
from dicache.reporting.words import duration

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2)
WARMING = 2
"""Steps of a run whose time is not counted: the first run of a process pays for what the others find ready."""


def columns_of(ready: Ready, prompts: list[str], call: PipelineCall, *, quiet: bool) -> list[Column]:
    """The uncached one, and one for each of the budgets. Raises what `enable` raises, and PipelineError for what the
    pipeline refuses.
    """
    with progress(not quiet) as bar, refusals_of(ready.pipe):
        total = WARMING + ready.steps * (1 + len(BUDGETS))
        task = bar.add_task("drawing", total=total * len(prompts))
        batches = [(k, prompts[k : k + call.batch]) for k in range(0, len(prompts), call.batch)]

        def drawn_of(source: Ready, first: int, some: list[str]) -> Pictures:
            seeds = [call.seed + first + i for i in range(len(some))]
            return drawn(source, some, seeds, advancing(bar.advance, task, len(some)))

        def all_of(source: Ready) -> list[Pictures]:
            return [drawn_of(source, *batch) for batch in batches]

        all_of(ready._replace(steps=WARMING))
        exact = all_of(ready)
        seconds = sum(each.seconds for each in exact)
        if not quiet:
            about = duration(seconds * len(BUDGETS))
            bar.console.print(f"uncached in {duration(seconds)}; {len(BUDGETS)} budgets take {about} or less.")
        columns = [Column(None, _shown(exact, ready), seconds)]
        for budget in BUDGETS:
            columns.append(_column(ready, budget, exact, all_of))
    return columns


def _column(ready: Ready, budget: float, exact: list[Pictures], all_of: Callable[[Ready], list[Pictures]]) -> Column:
    executed: list[tuple[float, float]] = []
    with enable(ready.pipe, error_budget=budget, on_report=lambda report: executed.append(_macs(report.to_dict()))):
        pictures = all_of(ready)
    seconds, before = (sum(each.seconds for each in some) for some in (pictures, exact))
    shown, uncached = ([each for some in drawings for each in some.shown] for drawings in (pictures, exact))
    done, whole = (sum(pair[k] for pair in executed) for k in range(2))
    return Column(
        budget,
        _shown(pictures, ready),
        seconds,
        whole / done,
        before / seconds,
        _errors(pictures, exact),
        [-value for value in _losses("psnr", shown, uncached)],
        [-value for value in _losses("ssim", shown, uncached)] if find_spec("torchmetrics") else [],
    )


def _macs(facts: dict[str, Any]) -> tuple[float, float]:
    return facts["executed_macs"], facts["uncached_macs"]


def _errors(pictures: list[Pictures], exact: list[Pictures]) -> list[float] | None:
    errors: list[float] = []
    for one, other in zip(pictures, exact, strict=True):
        if one.latents is None or other.latents is None:
            return None
        errors += relative_error(one.latents, other.latents).tolist()
    return errors


def _shown(drawings: Sequence[Pictures], ready: Ready) -> list[Any]:
    every = [each for some in drawings for each in some.shown]
    return [each.resize(SHOWN, resample=0) for each in every] if ready.ships else every


def _losses(name: str, pictures: Sequence[Any], exact: Sequence[Any]) -> list[float]:
    """Per prompt; the frames of a video stand below each other."""
    metric = resolved(name)[name]
    return [loss(name, metric, _tensor(a), _tensor(b)).item() for a, b in zip(pictures, exact, strict=True)]


def _tensor(picture: Any) -> Tensor:  # noqa: ANN401
    """(1, 3, H, W) in [0, 1]."""
    frames = picture if isinstance(picture, list) else [picture]
    rows = np.concatenate([np.asarray(frame.convert("RGB")) for frame in frames])
    return torch.from_numpy(rows).permute(2, 0, 1)[None].float() / 255


def write(columns: Sequence[Column], prompts: list[str], out: Path, title: str, *, as_json: bool) -> None:
    """The picture and the page, of one name, and the table on the screen."""
    picture, text = out.with_suffix(".png"), out.with_suffix(".html")
    with replacing(picture) as file:
        figure(columns, prompts).savefig(file, format="png", dpi=110)
    write_text(text, page(columns, prompts, title))
    if as_json:
        print(json.dumps([_facts(column) for column in columns]))
        return
    table = Table(title=title, title_justify="left")
    for name in ("budget", *NAMES):
        table.add_column(name, overflow="fold")
    for column in columns:
        table.add_row(column.title, *column.cells)
    console().print(table)
    for line in (HOW, *_passed(columns), f"wrote {picture} and {text}"):
        print(line)


def _passed(columns: Sequence[Column]) -> list[str]:
    """What is said of budgets that the median picture did not keep."""
    over = [c for c in columns if c.budget is not None and c.errors and np.median(c.errors) > c.budget]
    if not over:
        return []
    budgets = ", ".join(f"{column.budget:g}" for column in over)
    return [
        f"note: at a budget of {budgets} the median error passed it: what is estimated of this model without calibration "
        "is too little. Go by the pictures and the measured errors, or let `dicache calibrate` make the budget a promise."
    ]


def _facts(column: Column) -> dict[str, Any]:
    return {
        "budget": column.budget,
        "speedup": column.speedup,
        "seconds": column.seconds,
        "time_speedup": column.time_speedup,
        "errors": column.errors,
        "psnr": [value for value in column.psnr if math.isfinite(value)],
        "ssim": list(column.ssim),
    }
