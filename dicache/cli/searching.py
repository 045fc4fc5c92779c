"""Finding a schedule as it was asked for, and showing what was found."""

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress
from rich.table import Table

from dicache.cli.arguments import console
from dicache.cli.load import Ready, ready, refusals_of
from dicache.cli.options import PipelineCall, Source
from dicache.cli.plans import Approval
from dicache.errors import DicacheWarning
from dicache.files.atomic import replacing
from dicache.finders.by_name import make, sites_named
from dicache.finders.multistep import Multistep
from dicache.measuring.schedule_measurements import Calibration, ScheduleMeasurements
from dicache.reporting.front_plot import figure
from dicache.reporting.progress import progress
from dicache.reporting.words import duration, spent
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Schedule

FEWEST = 4
"""Prompts that a schedule may be tuned on."""


class SearchAim(NamedTuple):
    finder: str
    options: dict[str, str]
    sites: str
    budget: float | None
    cost: float | None


class SearchAnswer(NamedTuple):
    finder: str
    result: Schedule | ParetoSet
    spent: str
    """What it took, in words."""

    @property
    def members(self) -> Sequence[Schedule]:
        return self.result.members if isinstance(self.result, ParetoSet) else (self.result,)


@dataclass
class Watched:
    """Shows every kind of work on a line of its own, and times the first of them."""

    bar: Progress
    tasks: dict[str, Any] = field(default_factory=dict)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bar.add_task(what)
        self.bar.update(self.tasks[what], completed=done, total=total)


def search_for(
    wanted: SearchAim,
    prompts: Sequence[str],
    source: Source,
    call: PipelineCall,
    checkpoint: Path | None,
    approval: Approval | None = None,
    *,
    quiet: bool = False,
) -> SearchAnswer:
    """What the finder finds on these prompts. With `approval` the plan of a tuning is shown, and agreed to, first.
    Raises ScheduleError, and PipelineError for what the pipeline refuses. Warnings go to stderr.
    """
    quiet = quiet or (approval is not None and approval.quiet)
    prepared, started = ready(source, call), time.perf_counter()
    with warnings.catch_warnings(record=True) as noted, refusals_of(prepared.pipe):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DicacheWarning)
        drawers = []
        if approval is not None:
            first = _calibration(prepared, prompts[: call.batch], call).on(prepared.pipe, sites_named(wanted.sites))
            prompts = prompts[: _agreed(wanted, first, len(prompts), call, approval)]
            drawers.append(first.drawer)
        with progress(not quiet) as bar:
            calibration = replace(_calibration(prepared, prompts, call), tick=Watched(bar), checkpoint=checkpoint)
            method, sites = make(wanted.finder, wanted.options), sites_named(wanted.sites)
            result = method.find(
                prepared.pipe, sites, calibration, budget=wanted.budget, cost=wanted.cost, seed=call.seed
            )
            drawers.append(calibration.on(prepared.pipe, sites).drawer)
    for warning in noted:
        print(f"note: {warning.message}", file=sys.stderr)
    took = time.perf_counter() - started
    totals = (sum(getattr(each, name) for each in drawers) for name in ("samples", "executed", "uncached"))
    return SearchAnswer(wanted.finder, result, spent(took, *totals))


def show_answer(answer: SearchAnswer, out: Path, *, as_json: bool) -> None:
    """Write it, with a plot of a front, and print it."""
    answer.result.save(out)
    if isinstance(answer.result, ParetoSet):
        with replacing(out.with_suffix(".png")) as picture:
            figure({answer.finder: answer.result}).savefig(picture)
    if as_json:
        print(json.dumps([{"work": schedule.work, "error": schedule.error} for schedule in answer.members]))
        return
    console().print(table(answer.finder, answer.members))
    print(f"{answer.spent}\nwrote {out}")


def table(finder: str, members: Sequence[Schedule]) -> Table:
    rows = Table("work", "error", "schedules of " + finder)
    for schedule in members:
        sites = schedule.table.shape[1]
        shown = schedule.letters if sites == 1 else f"{sites} sites"
        rows.add_row(f"{schedule.work:.3f}", f"{schedule.error:.4f}", shown)
    return rows


def _calibration(prepared: Ready, prompts: Sequence[str], call: PipelineCall) -> Calibration:
    return Calibration(list(prompts), prepared.steps, seed=call.seed, batch=call.batch, call=prepared.call)


def _agreed(
    wanted: SearchAim, first: ScheduleMeasurements, prompts: int, call: PipelineCall, approval: Approval
) -> int:
    """How many prompts to go on with. The first batch is drawn uncached, to know the steps and the time."""
    tables = Multistep().candidates(first, wanted.cost, call.seed)
    works = first.basis.work(np.stack(tables)).tolist()
    seconds = first.drawer.seconds / first.drawer.samples
    shown = console(stderr=True)
    if not approval.quiet:
        for line in _plan_lines(prompts, call.batch, works, seconds):
            shown.print(line, soft_wrap=True)
    return approval.agreed(prompts, min(prompts, FEWEST), shown)


def _plan_lines(prompts: int, batch: int, works: Sequence[float], seconds: float) -> Iterator[str]:
    """What these prompts, and fewer or more of them, take, by the seconds of an uncached sample."""
    for n in sorted({8, 16, 24, 48, prompts}):
        plan, own = _plan(n, batch, works), " (yours)" if n == prompts else ""
        took = duration(seconds * plan.uncached)
        yield f"{n} prompts{own}: {plan.samples} samples to go, in {plan.runs} runs, about {took}"
    candidates = "1 candidate is" if len(works) == 1 else f"{len(works)} candidates are"
    yield (
        f"{candidates} fitted on {min(batch, prompts)} prompts and tried on all. More prompts buy a better choice and "
        "a truer error, and no confidence: that is what `dicache calibrate` is for."
    )


class _Plan(NamedTuple):
    samples: int
    runs: int
    uncached: float
    """Samples computing everything that would execute as much."""


def _plan(prompts: int, batch: int, works: Sequence[float]) -> _Plan:
    """All prompts uncached, those of a batch once more; every candidate is fitted on a batch and tried on all."""
    fitted, runs = min(batch, prompts), -(-prompts // batch)
    samples = prompts + fitted + len(works) * (fitted + prompts)
    return _Plan(samples, runs + 1 + len(works) * (1 + runs), prompts + fitted + sum(works) * (fitted + prompts))
