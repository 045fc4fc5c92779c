"""Drawing prompts with whatever pipeline, cached and where asked for uncached, or at several budgets to choose one by
looking (`dicache tune --show`), and writing what came of it.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from dicache.api import enable
from dicache.cli.arguments import console
from dicache.cli.load import Ready, refusals_of
from dicache.cli.options import PipelineCall
from dicache.errors import PipelineError
from dicache.files.atomic import replacing, write_text
from dicache.hosts.pipeline_call import listening, taken_by
from dicache.promise.metrics import relative_error
from dicache.reporting.choice import HOW, NAMES, Column, facts_of, figure, losses, notes, page
from dicache.reporting.progress import progress
from dicache.reporting.report import Report
from dicache.reporting.words import duration

FRAMES_PER_SECOND = 16
SHOWN = (256, 256)
"""Pixels that a picture of the model that ships is shown at; it draws 32 x 32."""


BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""That prompts are shown at."""
WARMING = 2
"""Steps of a run whose time is not counted: the first run of a process pays for what the others find ready."""


class Pictures(NamedTuple):
    """What one call gave."""

    shown: list[Any]
    """A picture of PIL per prompt, or of a video a list of them."""
    latents: Tensor | None
    """The final ones, (B, ...), of a pipeline that calls back."""
    seconds: float


@dataclass(frozen=True)
class DrawnBatch:
    prompts: list[str]
    seeds: list[int]
    cached: Pictures
    report: Report
    uncached: Pictures | None

    @property
    def true_errors(self) -> list[float] | None:
        if self.uncached is None or self.uncached.latents is None or self.cached.latents is None:
            return None
        errors: list[float] = relative_error(self.cached.latents, self.uncached.latents).tolist()
        return errors


@dataclass(frozen=True)
class Drawing:
    batches: list[DrawnBatch]
    ships: bool

    def save(self, out: Path) -> list[Path]:
        """A file per prompt. Raises FileError."""
        shown = [(picture, out) for batch in self.batches for picture in batch.cached.shown]
        if len(shown) > 1:
            shown = [(picture, out.with_stem(f"{out.stem}-{k}")) for k, (picture, _) in enumerate(shown)]
        return [_save(each.resize(SHOWN, resample=0) if self.ships else each, path) for each, path in shown]

    def save_report(self, path: Path) -> list[Path]:
        numbered = [path.with_stem(f"{path.stem}-{k}") for k in range(len(self.batches))]
        paths = numbered if len(self.batches) > 1 else [path]
        for batch, each in zip(self.batches, paths, strict=True):
            if each.suffix == ".html":
                shown, uncached = batch.cached.shown, None if batch.uncached is None else batch.uncached.shown
                prompts = [prompt for prompt in batch.prompts for _ in range(len(shown) // len(batch.prompts))]
                batch.report.save_html(each, pictures=shown, prompts=prompts, uncached=uncached)
            else:
                batch.report.save(each)
        return paths

    def lines(self) -> list[str]:
        return [line for batch in self.batches for line in _lines(batch)]

    def to_dict(self) -> dict[str, Any]:
        """The report with what was drawn; of several batches a list of them."""
        dicts = [_facts(batch) for batch in self.batches]
        return dicts[0] if len(dicts) == 1 else {"batches": dicts}


def draw(
    ready: Ready, prompts: Sequence[str], mode: Mapping[str, Any], call: PipelineCall, *, compare: bool, quiet: bool
) -> Drawing:
    """In batches of `call.batch`; prompt k has the seed `call.seed` + k. Raises what `enable` raises, and PipelineError
    for what the pipeline refuses.
    """
    batches = []
    with progress(not quiet) as bar:
        warming = WARMING * len(prompts[: call.batch]) if compare else 0
        task = bar.add_task("drawing", total=warming + ready.steps * len(prompts) * (2 if compare else 1))
        for start in range(0, len(prompts), call.batch):
            some = list(prompts[start : start + call.batch])
            seeds = [call.seed + start + k for k in range(len(some))]
            advance = advancing(bar.advance, task, len(some))
            with refusals_of(ready.pipe):
                if compare and not start:
                    drawn(ready._replace(steps=WARMING), some, seeds, advance)
                uncached = drawn(ready, some, seeds, advance) if compare else None
                with enable(ready.pipe, **mode) as cache:
                    cached = drawn(ready, some, seeds, advance)
                batches.append(DrawnBatch(some, seeds, cached, cache.report(), uncached))
    return Drawing(batches, ready.ships)


def advancing(advance: Callable[..., None], task: Any, samples: int) -> Callable[[], None]:  # noqa: ANN401
    """A tick of a bar for so many samples at once."""
    return lambda: advance(task, samples)


def drawn(ready: Ready, prompts: list[str], seeds: list[int], tick: Callable[[], None]) -> Pictures:
    """In one call of the pipeline; `tick` is called at every step."""
    last: dict[str, Tensor] = {}

    def after_step(latents: Tensor) -> None:
        tick()
        last.update(latents=latents)

    taken = taken_by(ready.pipe)
    pictures = {"output_type": "pil"} if "output_type" in taken else {}
    negative = ready.call.get("negative_prompt")
    listed = {"negative_prompt": [negative] * len(prompts)} if isinstance(negative, str) else {}
    started = time.perf_counter()
    with torch.no_grad():
        output = ready.pipe(
            prompt=prompts,
            num_inference_steps=ready.steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            **{**ready.call, **listed, **listening(ready.pipe, after_step), **pictures},
        )
    shown = getattr(output, "images", None)
    shown = getattr(output, "frames", None) if shown is None else shown
    if not isinstance(shown, list):
        raise PipelineError(
            f"{type(ready.pipe).__name__} gives neither pictures nor frames, but a {type(output).__name__}. Use "
            "dicache.enable in Python."
        )
    return Pictures(shown, last.get("latents"), time.perf_counter() - started)


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
    runs: list[tuple[float, float]] = []
    with enable(ready.pipe, error_budget=budget, on_report=lambda report: runs.append(_macs(report.to_dict()))):
        pictures = all_of(ready)
    seconds, before = (sum(each.seconds for each in some) for some in (pictures, exact))
    shown, uncached = ([each for some in drawings for each in some.shown] for drawings in (pictures, exact))
    executed, uncached_macs = (sum(pair[k] for pair in runs) for k in range(2))
    return Column(
        budget,
        _shown(pictures, ready),
        seconds,
        uncached_macs / executed,
        before / seconds,
        _errors(pictures, exact),
        [-value for value in losses("psnr", shown, uncached)],
        [-value for value in losses("ssim", shown, uncached)] if find_spec("torchmetrics") else [],
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


def write_choice(columns: Sequence[Column], prompts: list[str], out: Path, title: str, *, as_json: bool) -> None:
    """The picture and the page, of one name, and the table on the screen."""
    picture, text = out.with_suffix(".png"), out.with_suffix(".html")
    with replacing(picture) as file:
        figure(columns, prompts).savefig(file, format="png", dpi=110)
    write_text(text, page(columns, prompts, title))
    if as_json:
        print(json.dumps([facts_of(column) for column in columns]))
        return
    table = Table(title=title, title_justify="left")
    for name in ("budget", *NAMES):
        table.add_column(name, overflow="fold")
    for column in columns:
        table.add_row(column.title, *column.cells)
    console().print(table)
    for line in (HOW, *notes(columns), f"wrote {picture} and {text}"):
        print(line)


def _save(picture: Any, path: Path) -> Path:  # noqa: ANN401
    """A picture, or the frames of a video, which go into a .gif beside a name that cannot hold them: that a pipeline
    gives videos is only known once one was drawn. The path that was written.
    """
    if isinstance(picture, list) and path.suffix.lower() not in (".gif", ".webp"):
        path = path.with_suffix(".gif")
    first, *rest = picture if isinstance(picture, list) else [picture]
    frames = {"save_all": True, "append_images": rest, "duration": 1000 // FRAMES_PER_SECOND, "loop": 0}
    with replacing(path) as file:
        first.save(file, **(frames if rest else {}))
    return path


def _lines(batch: DrawnBatch) -> list[str]:
    """What a person is told of it."""
    lines = [str(batch.report).rstrip(), f"seeds: {', '.join(map(str, batch.seeds))}"]
    seconds = batch.cached.seconds
    if batch.uncached is None:
        return [*lines, f"drawn in {duration(seconds)}"]
    before = batch.uncached.seconds
    ratio = f"{before / seconds:.2f}x less time" if seconds <= before else f"{seconds / before:.2f}x as long"
    lines.append(f"drawn in {duration(seconds)}, uncached in {duration(before)}: {ratio}")
    if batch.true_errors is not None:
        errors = ", ".join(f"{error:.4f}" for error in batch.true_errors)
        lines.append(f"true errors against the uncached pictures: {errors}")
        lines += _passed(batch, batch.true_errors)
    return lines


def _passed(batch: DrawnBatch, errors: Sequence[float]) -> list[str]:
    """Where true errors are beyond budgets of the latent."""
    budgets = [sample["budget"] for sample in batch.report.to_dict()["samples"]]
    over = [k for k, (error, budget) in enumerate(zip(errors, budgets, strict=True)) if budget and error > budget]
    if not over:
        return []
    if batch.report.to_dict()["confidence"] is not None:
        return [f"note: samples {over} are beyond their budget, as a promise lets some be."]
    return [
        f"note: samples {over} are beyond their budget: estimates are too low here. Ask for less, or calibrate a "
        "promise (dicache calibrate)."
    ]


def _facts(batch: DrawnBatch) -> dict[str, Any]:
    before = None if batch.uncached is None else batch.uncached.seconds
    return {
        **batch.report.to_dict(),
        "prompts": batch.prompts,
        "seeds": batch.seeds,
        "seconds": batch.cached.seconds,
        "uncached_seconds": before,
        "true_errors": batch.true_errors,
    }
