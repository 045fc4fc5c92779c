"""The one door to what two dozen prompts buy: a schedule for this model, solver and number of steps.

    race     a portfolio of places to compute at, each with slopes fitted along its own run, on the first prompts
    fit      the best few again, on as many prompts as are drawn at once
    judge    those on all prompts; the one that errs least is the answer
    compare  the default with as many computed steps, on the same prompts: what the tuning bought

For an error budget the number of computed steps is bisected by races first, and the fewest whose answer keeps the
budget in the mean are taken. See `dicache.finders.multistep` for what is fitted.
"""

import bisect
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dicache.api import enable
from dicache.enable_options import BARE
from dicache.errors import DicacheWarning, ScheduleError
from dicache.fanout.workers import Executors, is_factory
from dicache.finders.multistep import FINALISTS, Multistep
from dicache.measuring.prompt_runs import Prompt, misuse
from dicache.measuring.schedule_measurements import Calibration, ScheduleMeasurements
from dicache.promise.metrics import relative_error
from dicache.reporting.progress import Watched
from dicache.reporting.progress import progress as progress_bar
from dicache.reporting.words import spent
from dicache.schedules.action_table import Table, computes
from dicache.schedules.schedule import Schedule
from dicache.sites import Evaluation
from dicache.tuning.tuning_plan import TuningPlan

LONGEST = 16
"""Most steps skipped in a row."""
FEWEST = 4
"""Prompts that a schedule may be tuned on."""


def tune(
    pipe: Any,  # noqa: ANN401
    prompts: Sequence[Prompt],
    *,
    steps: int,
    speedup: float | None = None,
    error_budget: float | None = None,
    seed: int = 0,
    batch: int = 8,
    call: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    approve: Callable[[TuningPlan], int] | None = None,
    executor: Executors | None = None,
) -> Schedule:
    """A schedule of the pipeline at `steps` steps, tuned on prompts like those it will run on: `enable(pipe,
    schedule=...)` follows it. Two dozen prompts in one batch are a good number.

    `speedup` is the ratio of uncached to executed work of the denoiser that it must reach; `error_budget` the relative
    L2 error of the final latent that it may have, ||x - x_ref|| / ||x_ref||, the mean over the prompts, at as little
    work as that takes. A schedule decides the same for every prompt and promises nothing: a promise is what
    `dicache.calibrate` measures.

    `pipe`, `prompts`, `call`, `seed`, `batch`, `checkpoint` and `executor` are as in `dicache.calibrate`; a loop of
    one's own goes as a `dicache.Sampler`. Slopes are fitted on the first `batch` prompts, drawn at once.

    With `progress` lines on stderr say beforehand how much is drawn and how long that takes, and at the end what it
    took and what it bought: the error of the default with as many computed steps on the same prompts. `approve` is
    asked beforehand with a `TuningPlan`, and gives how many of the prompts to go on with.

    Raises ScheduleError unless exactly one of speedup (a finite number from 1 on) and error_budget (from 0 on) is
    given, for fewer than 4 prompts, a bare denoiser, a pipeline with several denoisers, one whose scheduler does not
    tell its steps or is given something else than the denoiser's outputs, and a speed-up that no run of so many steps
    can have; ProfileError for a pipeline that does not call back after its steps; WorkerError where workers were lost.
    """
    _check(pipe, prompts, call or {}, speedup, error_budget)
    asked = Calibration(list(prompts), steps, seed=seed, batch=batch, call=dict(call or {}), checkpoint=checkpoint)
    bar, started = progress_bar(progress), time.perf_counter()
    tell = bar.console.print if progress else _silent
    made = pipe() if is_factory(pipe) else pipe
    first = Calibration(list(prompts)[:batch], steps, seed=seed, batch=batch, call=asked.call).on(made, Evaluation())
    plan = _plan(first, len(asked.prompts), speedup)
    for line in plan.lines:
        tell(line)
    asked = _agreed(asked, plan, approve)
    with bar:
        asked.tick = Watched(bar)
        measurements = asked.on(made, Evaluation())
        with measurements.handing_out(pipe, executor):
            schedule = _answer(measurements, speedup, error_budget, seed)
        default = default_error(measurements, schedule)
    drawn = [first.drawer.spent, measurements.drawer.spent]
    tell(spent(time.perf_counter() - started, *(sum(getattr(each, n) for each in drawn) for n in _SPENT)))
    tell(_bought(schedule, default))
    if default < (schedule.error or 0.0):
        text = f"the default errs less on these prompts, {default:.3g} for {schedule.error:.3g}: use speedup= instead."
        warnings.warn(text, DicacheWarning, stacklevel=2)
    return schedule


_SPENT = ("samples", "executed", "uncached")


def _silent(line: str) -> None: ...


def _check(
    pipe: Any,  # noqa: ANN401
    prompts: Sequence[Prompt],
    call: Mapping[str, Any],
    speedup: float | None,
    error_budget: float | None,
) -> None:
    if isinstance(pipe, nn.Module):
        raise ScheduleError(
            f"{type(pipe).__name__} cannot be tuned: {BARE}. Pass the pipeline, or the loop as a dicache.Sampler."
        )
    if (speedup is None) == (error_budget is None):
        raise ScheduleError("expected one of speedup and error_budget.")
    if speedup is not None and not 1 <= speedup < float("inf"):
        raise ScheduleError(f"speedup is {speedup!r}. Expected a finite number from 1 on.")
    if error_budget is not None and not 0 <= error_budget < float("inf"):
        raise ScheduleError(f"error_budget is {error_budget!r}. Expected a finite number from 0 on.")
    if wrong := misuse(prompts, call):
        raise ScheduleError(wrong)
    if len(prompts) < FEWEST:
        raise ScheduleError(f"{len(prompts)} prompts are too few to tune on. Expected {FEWEST} or more.")


def _agreed(asked: Calibration, plan: TuningPlan, approve: Callable[[TuningPlan], int] | None) -> Calibration:
    """With as many prompts as were agreed to."""
    count = len(asked.prompts) if approve is None else approve(plan)
    if not FEWEST <= count <= len(asked.prompts):
        raise ScheduleError(
            f"{count} prompts were agreed to. Expected {FEWEST} or more, of the {len(asked.prompts)} that there are."
        )
    return asked if count == len(asked.prompts) else replace(asked, prompts=list(asked.prompts)[:count])


def _bought(schedule: Schedule, default: float) -> str:
    error = schedule.error or 0.0
    less = f", {default / error:.2g} times as much" if 0 < error < default else ""
    return (
        f"{schedule.work:.3f} of the work at an error of {error:.3g}; the default with as many computed steps errs "
        f"{default:.3g} on these prompts{less}"
    )


def _plan(first: ScheduleMeasurements, prompts: int, speedup: float | None) -> TuningPlan:
    """The first batch is drawn uncached, to know the steps and the time."""
    finder = Multistep(longest=LONGEST)
    finder.check(first)
    counts, batch = finder.counts(first), first.calibration.batch
    if speedup is not None:
        computed = [finder.affords(first, 1 / speedup)]
        tries = min(FINALISTS, len(finder.placed(first, computed[0])))
    else:  # a bisection, and the answer for two numbers of steps at most as a rule
        computed = [counts[len(counts) // 2]] * math.ceil(math.log2(len(counts)))
        tries = 2 * FINALISTS
    raced = [finder.work(first, n) for n in computed for _ in finder.placed(first, n)]
    work = finder.work(first, computed[0])
    seconds = first.drawer.seconds / first.drawer.samples
    return TuningPlan(prompts, batch, raced, [work] * tries, work, seconds, speedup is not None)


def _answer(
    measurements: ScheduleMeasurements, speedup: float | None, error_budget: float | None, seed: int
) -> Schedule:
    finder = Multistep(longest=LONGEST)
    if speedup is not None:
        return _best(finder, measurements, finder.candidates(measurements, 1 / speedup, seed), seed)
    assert error_budget is not None
    counts = finder.counts(measurements)
    fewest = bisect.bisect_left(counts, -error_budget, key=lambda n: -finder.race(measurements, n)[0][0])
    for computed in counts[fewest:]:
        tables = [table for _, _, table in finder.race(measurements, computed)[:FINALISTS]]
        answer = _best(finder, measurements, tables, seed)
        if (answer.error or 0.0) <= error_budget or computed == counts[-1]:
            break
    if computed == counts[-1]:
        text = f"nothing can be skipped within a budget of {error_budget:g}: this schedule computes everything."
        warnings.warn(text, DicacheWarning, stacklevel=3)
    return answer


def _best(finder: Multistep, measurements: ScheduleMeasurements, tables: Sequence[Table], seed: int) -> Schedule:
    return min(finder.schedules(measurements, tables, seed), key=lambda schedule: schedule.error or 0.0)


def default_error(measurements: ScheduleMeasurements, schedule: Schedule) -> float:
    """The mean, of what `enable(evaluations=...)` does with as many computed steps."""
    calibration, computed = measurements.calibration, int((computes(schedule.table)).sum())
    errors = []
    with enable(measurements.pipe, evaluations=computed):
        for start in range(0, measurements.prompts, calibration.batch):
            some = range(start, min(start + calibration.batch, measurements.prompts))
            errors.append(
                relative_error(measurements.drawer.draw(some).latents, measurements.reference[some.start : some.stop])
            )
    return float(torch.cat(errors).mean())
