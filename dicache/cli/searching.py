"""Finding a schedule as it was asked for, and showing what was found."""

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from dicache.cli.arguments import console
from dicache.cli.load import ready, refusals_of
from dicache.cli.options import PipelineCall, Source
from dicache.cli.plans import Approval
from dicache.errors import DicacheWarning
from dicache.files.atomic import replacing
from dicache.finders.by_name import make, sites_named
from dicache.finders.multistep import Multistep
from dicache.measuring.schedule_measurements import Calibration
from dicache.reporting.front_plot import figure
from dicache.reporting.progress import Watched, progress
from dicache.reporting.words import spent
from dicache.schedules.pareto import ParetoSet
from dicache.schedules.schedule import Schedule
from dicache.tuning.tune import FEWEST, tune


class SearchAim(NamedTuple):
    finder: str
    options: dict[str, str]
    sites: str
    budget: float | None
    cost: float | None


class SearchAnswer(NamedTuple):
    finder: str
    result: Schedule | ParetoSet
    spent: str = ""
    """What it took, in words, where nobody has said it yet."""

    @property
    def members(self) -> Sequence[Schedule]:
        return self.result.members if isinstance(self.result, ParetoSet) else (self.result,)


def search_for(
    wanted: SearchAim,
    prompts: Sequence[str],
    source: Source,
    call: PipelineCall,
    checkpoint: Path | None,
    *,
    quiet: bool = False,
) -> SearchAnswer:
    """What the finder finds on these prompts. Raises ScheduleError, and PipelineError for what the pipeline refuses.
    Warnings go to stderr.
    """
    prepared, started = ready(source, call), time.perf_counter()
    with _noting(), refusals_of(prepared.pipe), progress(not quiet) as bar:
        calibration = Calibration(
            list(prompts),
            prepared.steps,
            seed=call.seed,
            batch=call.batch,
            call=prepared.call,
            tick=Watched(bar),
            checkpoint=checkpoint,
        )
        method, sites = make(wanted.finder, wanted.options), sites_named(wanted.sites)
        result = method.find(prepared.pipe, sites, calibration, budget=wanted.budget, cost=wanted.cost, seed=call.seed)
        drawer = calibration.on(prepared.pipe, sites).drawer
    took = time.perf_counter() - started
    return SearchAnswer(wanted.finder, result, spent(took, drawer.samples, drawer.executed, drawer.uncached))


def tune_for(
    speedup: float | None,
    budget: float | None,
    prompts: Sequence[str],
    source: Source,
    call: PipelineCall,
    checkpoint: Path | None,
    approval: Approval,
) -> SearchAnswer:
    """What `dicache.tune` finds on these prompts; its plan is shown, and agreed to, first. Raises as `search_for`."""
    prepared = ready(source, call)
    with _noting(), refusals_of(prepared.pipe):
        schedule = tune(
            prepared.pipe,
            list(prompts),
            steps=prepared.steps,
            speedup=speedup,
            error_budget=budget,
            seed=call.seed,
            batch=call.batch,
            call=prepared.call,
            checkpoint=checkpoint,
            progress=not approval.quiet,
            approve=lambda plan: approval.agreed(plan.prompts, FEWEST, console(stderr=True)),
        )
    return SearchAnswer(Multistep.name, schedule)


@contextmanager
def _noting() -> Iterator[None]:
    """What dicache warns of while it lasts goes to stderr, as notes; what others warn of is dropped."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", DicacheWarning)
        yield
    for warning in noted:
        print(f"note: {warning.message}", file=sys.stderr)


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
    print("\n".join(filter(None, [answer.spent, f"wrote {out}"])))


def table(finder: str, members: Sequence[Schedule]) -> Table:
    rows = Table("work", "error", "schedules of " + finder)
    for schedule in members:
        sites = schedule.table.shape[1]
        shown = schedule.letters if sites == 1 else f"{sites} sites"
        rows.add_row(f"{schedule.work:.3f}", f"{schedule.error:.4f}", shown)
    return rows
