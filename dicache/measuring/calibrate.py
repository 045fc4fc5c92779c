"""Measure what a promise needs, on prompts of the user's, and put it into a `Profile`: draw every prompt uncached, and
within every internal budget of a grid. Nothing is chosen on these prompts, so what they lose within each budget is what
any prompt like them will lose (`dicache.promise.learn_then_test`). The uncached runs also tell what a run must share
with these for that to hold: steps, guidance, negative prompt.

Everything is fixed by the seed: prompt k has latents of seed + k. What was drawn is kept in the folder `checkpoint`, if
one is given; the same call goes on there after a kill, with the batch that it was at, and a call with other levels, or
with more prompts at the end, draws only what is new. With an `executor` batches are handed out, and the profile is the
same to the bit.
"""

import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from dicache.api import denoisers
from dicache.config import Config
from dicache.enable_options import BARE
from dicache.errors import ProfileError
from dicache.fanout.worker import Worker
from dicache.fanout.workers import Executors, Workers, resuming
from dicache.files.checkpoint import Checkpoint
from dicache.measuring.calibration_plan import CalibrationPlan
from dicache.measuring.calibration_runs import CalibrationRuns, batches
from dicache.measuring.gains import arguments_of, measure_gains
from dicache.measuring.prompt_runs import Drawer, Prompt, check_prompts, misuse, without_encoder
from dicache.models.identity import identity
from dicache.planning.error_law import RULE
from dicache.promise.learn_then_test import LISTED, prompts_needed
from dicache.promise.metrics import Metrics, resolved
from dicache.promise.profile import Profile
from dicache.reporting.progress import progress as progress_bar
from dicache.reporting.words import duration, spent
from dicache.types import LATENT

LEVELS = (0.002, 0.0035, 0.006, 0.01, *(0.014 * 1.25**k for k in range(11)), 0.18, 0.27, 0.4)
"""Internal budgets: dense where the errors lie that people ask for. The largest one that keeps a budget may lie between
two of them: twice as many (`finer`) take nearly twice the time of the tests, and used up to a fifth more of the budget.
"""
FEWEST = 8


def calibrate(
    pipe: Any,  # noqa: ANN401
    prompts: Sequence[Prompt],
    *,
    steps: int,
    seed: int = 0,
    batch: int = 8,
    metric: Metrics = LATENT,
    call: Mapping[str, Any] | None = None,
    levels: Sequence[float] = LEVELS,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    approve: Callable[[CalibrationPlan], int] | None = None,
    executor: Executors | None = None,
    config: Config | None = None,
) -> Profile:
    """A profile of the pipeline at `steps` steps, on prompts like those it will run on.

    A prompt is a text, or a mapping of the pipeline's arguments that stand for one, {"prompt_embeds": (1, n, d), ...}.
    `call` are further arguments of the pipeline, as they will be given later (guidance scale, negative prompt, size).
    `metric` is "latent", "psnr", "ssim", several of them, or a mapping from names to functions (images, reference) ->
    (B,), images (B, C, H, W) in [0, 1], less being better; the latent's relative L2 is always among them. Every prompt
    is drawn once uncached and once for each of the `levels`. 100 prompts leave a confidence of 0.9 little worse than
    their own noise, 22 are the fewest for it.

    With `progress` a line on stderr says beforehand how much is drawn, another one after two runs of the first batch
    how long that takes, and one at the end what it took. `approve` is asked there as well, with a `CalibrationPlan`
    that says what these prompts, or fewer of them, take and are worth: it gives how many of the prompts to go on with.
    Warns where the prompts are too few for a confidence of 0.8, which takes 11.

    `executor` is a `concurrent.futures.Executor` that the runs are handed to: threads, processes, Ray
    (`dicache.ray.executor`), each worker with a pipeline of its own; or a function that makes one, and then a lost one
    is replaced. `pipe` may be a function that makes the pipeline, for each worker and not here. The seconds that are
    said beforehand are then those of one worker.

    `config` is a composition of sites below the whole evaluation, whose rule is not looked at: first its gains are
    measured, how far an error of each site reaches the final latent (`dicache.measuring.gains`), then what it loses
    within every level. `profile.rule(0.05)` is then the controller to give it. How much gains take, and what follows at
    most, is said after one uncached run; the checkpoint keeps them batch by batch.

    Raises ProfileError for a bare denoiser, prompts that are not a list or that the pipeline cannot read (the reference
    model: CaptionError), fewer than 8 of them, a `call` with arguments that have a name here, a metric that is not
    known or gives no number, an `approve` that gives fewer than 8 prompts or more than there are, a checkpoint of
    another calibration, a pipeline without step callbacks, or one whose scheduler does not tell its timetable, and
    WorkerError where workers were lost, or nothing can be sent to them.
    """
    if isinstance(pipe, nn.Module):
        raise ProfileError(f"{type(pipe).__name__} cannot be calibrated: {BARE}. Pass the pipeline.")
    if wrong := misuse(prompts, call or {}):
        raise ProfileError(wrong)
    prompts, functions = list(prompts), resolved(metric)
    if len(prompts) < FEWEST:
        raise ProfileError(f"{len(prompts)} prompts are too few to calibrate on. Expected {FEWEST} or more.")
    with Workers(pipe, executor, resuming(checkpoint)) as workers:
        asked = Denoised(tuple(prompts))
        model = workers.one(asked) if workers.made else asked.run(Worker(pipe))
        drawer = Drawer(pipe, prompts, steps, seed, dict(call or {}), images=bool(functions))
        arguments = [model, steps, seed, batch, sorted(functions), call, RULE, *arguments_of(_inside(config))]
        entries = Checkpoint(None if checkpoint is None else Path(checkpoint), arguments)
        if len(prompts) < (fewest := prompts_needed(LISTED[0])):
            text = f"{len(prompts)} prompts are too few to promise a confidence of {LISTED[0]:g}, which takes {fewest}."
            warnings.warn(text, stacklevel=2)
        gains = None
        if config is not None:
            after = CalibrationPlan(len(prompts), len(levels), batch).samples
            gains = measure_gains(workers, drawer, config, model, entries, batch=batch, after=after, progress=progress)
        work = CalibrationRuns(workers, drawer, entries, sorted(levels), functions, config, gains)
        return _drawn(work, model, batch, progress, approve)


def _inside(config: Config | None) -> Config | None:
    """Raises ProfileError where its sites are whole evaluations, whose errors are priced without."""
    if config is not None and not config.sites.inside_denoiser:
        raise ProfileError(
            f"config has {config.sites}, and gains are those of sites inside the denoiser, such as Tail(). Leave out "
            "config to calibrate what enable(error_budget=...) uses."
        )
    return config


@dataclass(frozen=True)
class Denoised:
    """Asks which denoiser a pipeline has. Raises ProfileError for prompts that it cannot read."""

    prompts: tuple[Prompt, ...]

    def run(self, worker: Worker) -> str:
        if wrong := without_encoder(worker.pipe, self.prompts):
            raise ProfileError(wrong)
        check_prompts(worker.pipe, self.prompts)
        return identity(next(iter(denoisers(worker.pipe).values())))


def _drawn(
    work: CalibrationRuns,
    model: str,
    batch: int,
    progress: bool,
    approve: Callable[[CalibrationPlan], int] | None,
) -> Profile:
    """The profile, with a bar and with what it cost."""
    started, drawer = time.perf_counter(), work.drawer
    bar = progress_bar(progress)
    tell = bar.console.print if progress else _silent
    plan = _agreed(work, CalibrationPlan(len(drawer.prompts), len(work.levels), batch), model, tell, approve)
    with bar:
        task = bar.add_task("calibrating", total=plan.batches)
        work.tick = lambda what: bar.update(task, advance=1, description=f"calibrating, {what}")
        profile = work.profile(batches(range(plan.prompts), batch), model)
    took = time.perf_counter() - started
    tell(spent(took, drawer.samples, drawer.executed, drawer.uncached))
    about = {
        "prompts": {"testing": plan.prompts},
        "negative prompt": "the same for all, checked" if profile.facts.negative_conditions else "not checked",
        "seed": drawer.seed,
        "call": {key: value for key, value in drawer.call.items() if isinstance(value, str | int | float | bool)},
        "cost": {
            "seconds": round(took, 1),
            "samples": drawer.samples,
            "macs": drawer.executed,
            "uncached macs": drawer.uncached,
            "resumed": work.checkpoint.resumed,
        },
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }
    return Profile(profile.facts, profile.arrays, about)


def finer(levels: Sequence[float]) -> tuple[float, ...]:
    """With one more between every two neighbours, at their geometric mean."""
    rising = sorted(levels)
    return tuple(sorted({*rising, *(math.sqrt(a * b) for a, b in itertools.pairwise(rising))}))


def _agreed(
    work: CalibrationRuns,
    plan: CalibrationPlan,
    model: str,
    tell: Callable[[str], Any],
    approve: Callable[[CalibrationPlan], int] | None,
) -> CalibrationPlan:
    """What is drawn, said before it is. Two runs are timed on the way, whose results are used."""
    tell(
        f"{plan.runs} runs a prompt, one uncached and one within each of {plan.levels} internal budgets: "
        f"{plan.samples} samples, in {plan.batches} batches of {plan.batch} or fewer."
    )
    batched = batches(range(plan.prompts), plan.batch)
    plan = replace(plan, seconds=work.seconds(batched[0], model), undrawn=work.undrawn(batched))
    if plan.remaining:
        tell(f"{plan.undrawn} samples to go, about {duration(plan.remaining)}.")
    prompts = plan.prompts if approve is None else approve(plan)
    if not FEWEST <= prompts <= plan.prompts:
        there = f"the {plan.prompts} that there are"
        raise ProfileError(f"{prompts} prompts were agreed to. Expected {FEWEST} or more, of {there}.")
    return plan.of(prompts)


def _silent(line: str) -> None: ...
