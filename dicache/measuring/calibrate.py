"""Measure what a promise needs, on prompts of the user's, and put it into a `Profile`: draw every prompt uncached, and
within every internal budget of a grid. Nothing is chosen on these prompts, so what they lose within each budget is what
any prompt like them will lose (`dicache.promise.learn_then_test`). The uncached runs also tell what a run must share
with these for that to hold: steps, guidance, negative prompt.

Everything is fixed by the seed: prompt k has latents of seed + k. What was drawn is kept in the folder `checkpoint`, if
one is given; the same call goes on there after a kill, and a call with other levels, or with more prompts at the end,
draws only what is new.
"""

import hashlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from dicache.api import denoisers, enable
from dicache.config import Config
from dicache.controllers.planned import Planned
from dicache.defaults import for_profile
from dicache.enable_options import BARE
from dicache.errors import ProfileError
from dicache.files.checkpoint import Checkpoint, Entry
from dicache.measuring.prompt_runs import Drawer, Drawn, Prompt, check_prompts, misuse, text_of, without_encoder
from dicache.measuring.recording import Recorder
from dicache.models.conditioning import alike
from dicache.models.identity import identity
from dicache.planning.error_law import RULE
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.facts import LATENT_LOSS, LOSS, NEEDED, Facts
from dicache.promise.keep_budget import FixedLevel
from dicache.promise.learn_then_test import LISTED, prompts_needed
from dicache.promise.metrics import Metric, Metrics, loss, relative_error, resolved
from dicache.promise.profile import Profile
from dicache.runtime.trace import Trace
from dicache.types import LATENT, RunFacts, Timetable

LEVELS = (0.002, 0.0035, 0.006, 0.01, *(0.014 * 1.25**k for k in range(11)), 0.18, 0.27, 0.4)
"""Internal budgets: dense where the errors lie that people ask for. The largest one that keeps a budget may lie between
two of them: twice as many (`finer`) take nearly twice the time of the tests, and used up to a fifth more of the budget.
"""
FEWEST = 8
SHORTEST = 6
"""Steps of a run that can be calibrated."""
NEGATIVE_CONDITIONS = "negative."


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
) -> Profile:
    """A profile of the pipeline at `steps` steps, on prompts like those it will run on.

    A prompt is a text, or a mapping of the pipeline's arguments that stand for one, {"prompt_embeds": (1, n, d), ...}.
    `call` are further arguments of the pipeline, as they will be given later (guidance scale, negative prompt, size).
    `metric` is "latent", "psnr", "ssim", several of them, or a mapping from names to functions (images, reference) ->
    (B,), images (B, C, H, W) in [0, 1], less being better; the latent's relative L2 is always among them. Every prompt
    is drawn once uncached and once for each of the `levels`. 100 prompts leave a confidence of 0.9 little worse than
    their own noise, 22 are the fewest for it.

    With `progress` a line on stderr says beforehand how much is drawn, another one after the first batch how long that
    takes. Warns where the prompts are too few for a confidence of 0.8, which takes 11.

    Raises ProfileError for a bare denoiser, prompts that are not a list or that the pipeline cannot read (the reference
    model: CaptionError), fewer than 8 of them, a `call` with arguments that have a name here, a metric that is not
    known or gives no number, a checkpoint of another calibration, a pipeline without step callbacks, or one whose
    scheduler does not tell its timetable.
    """
    started = time.perf_counter()
    if isinstance(pipe, nn.Module):
        raise ProfileError(f"{type(pipe).__name__} cannot be calibrated: {BARE}. Pass the pipeline.")
    if wrong := misuse(prompts, call or {}) or without_encoder(pipe, prompts):
        raise ProfileError(wrong)
    prompts = list(prompts)
    if len(prompts) < FEWEST:
        raise ProfileError(f"{len(prompts)} prompts are too few to calibrate on. Expected {FEWEST} or more.")
    check_prompts(pipe, prompts)
    functions = resolved(metric)
    drawer = Drawer(pipe, prompts, steps, seed, dict(call or {}), images=bool(functions))
    model = identity(next(iter(denoisers(pipe).values())))
    arguments = [model, steps, seed, batch, sorted(functions), call, RULE]
    entries = Checkpoint(None if checkpoint is None else Path(checkpoint), arguments)
    work = _Work(pipe, drawer, entries, sorted(levels), functions)
    batched = batches(range(len(prompts)), batch)
    if len(prompts) < (fewest := prompts_needed(LISTED[0])):
        text = f"{len(prompts)} prompts are too few to promise a confidence of {LISTED[0]:g}, which takes {fewest}."
        warnings.warn(text, stacklevel=2)
    with _bar(progress) as bar:
        runs = 1 + len(levels)
        if progress:
            work.tell = partial(bar.console.print, highlight=False, soft_wrap=True)
        work.tell(
            f"{runs} runs a prompt, one uncached and one within each of {len(levels)} internal budgets: "
            f"{runs * len(prompts)} samples, in {runs * len(batched)} batches of {batch} or fewer."
        )
        task = bar.add_task("calibrating", total=runs * len(batched))
        work.tick = lambda what: bar.update(task, advance=1, description=what)
        profile = work.profile(batched, model)
    about = {
        "prompts": {"testing": len(prompts)},
        "negative prompt": "the same for all, checked" if profile.facts.negative_conditions else "not checked",
        "seed": seed,
        "call": {key: value for key, value in (call or {}).items() if isinstance(value, str | int | float | bool)},
        "cost": {
            "seconds": round(time.perf_counter() - started, 1),
            "samples": work.drawn,
            "resumed": entries.resumed,
        },
        "versions": {name: version(name) for name in ("torch", "diffusers")},
    }
    return Profile(profile.facts, profile.arrays, about)


class _Uncached(NamedTuple):
    """One batch, computing everything."""

    drawn: Drawn
    shown: Entry
    """What the run tells of itself: sigmas and guidance, size, solver, negative prompts."""


class _Work:
    """Draws what the checkpoint does not hold yet."""

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        drawer: Drawer,
        checkpoint: Checkpoint,
        levels: Sequence[float],
        metrics: Mapping[str, Metric],
    ) -> None:
        self.pipe, self.drawer, self.checkpoint, self.levels, self.metrics = pipe, drawer, checkpoint, levels, metrics
        self.drawn = 0
        self.tick: Callable[[str], None] = lambda what: None
        self.tell: Callable[[str], None] = lambda line: None

    def profile(self, batched: Sequence[Sequence[int]], model: str) -> Profile:
        """The tests must have the steps and the guidance of the first batch."""
        shown: list[Entry] = []
        lost: list[Entry] = []
        started, timed = time.perf_counter(), False
        for k, indices in enumerate(batched):
            name, uncached = f"{k}-{self._digest(indices)}", cache(partial(self._uncached, indices))
            shown.append(self.checkpoint.entry(f"uncached-{name}", partial(_shown, uncached)))
            self.tick("uncached")
            lost.append(self._tested(indices, name, uncached, _untested(model, shown[0])))
            left = sum(map(len, batched[k + 1 :])) * (1 + len(self.levels))
            if self.drawn and left and not timed:  # what a checkpoint holds takes no time
                minutes = (time.perf_counter() - started) / self.drawn * left / 60
                self.tell(f"{left} samples to go, about {minutes:.1f} minutes.")
                timed = True
        facts = replace(_untested(model, shown[0]).facts, negative_conditions=_shared(shown))
        tested = {key: np.concatenate([each[key] for each in lost]).astype(np.float32) for key in lost[0]}
        return Profile(facts, {**tested, "levels": np.array(self.levels, dtype=np.float32)})

    def _uncached(self, indices: Sequence[int]) -> _Uncached:
        with enable(self.pipe, config=Config(Planned(0.0))) as enabled:
            drawn = self._draw(indices)
            trace, facts = enabled.trace, Recorder(enabled).facts
        assert trace is not None
        timetable, guidance = _timetable_and_guidance(trace, facts)
        shown = {
            "timetable": np.array([*timetable.sigmas, guidance]),
            "size": np.array(facts.size),
            "controls": np.frombuffer("\n".join(facts.controls).encode(), np.uint8),
            "solver": np.frombuffer(timetable.solver.encode(), np.uint8),
            **{NEGATIVE_CONDITIONS + name: each.numpy() for name, each in facts.negative_conditions.items()},
        }
        return _Uncached(drawn, shown)

    def _tested(self, indices: Sequence[int], name: str, uncached: Callable[[], _Uncached], untested: Profile) -> Entry:
        """What a batch loses within every level, (B, levels) each."""
        cells = []
        for level in self.levels:
            make = partial(self._within, indices, uncached, untested, level)
            cells.append(self.checkpoint.entry(f"test-{name}-{float(level)!r}", make))
            self.tick("tests")
        return {key: np.stack([cell[key] for cell in cells], axis=1) for key in cells[0]}

    def _within(
        self, indices: Sequence[int], uncached: Callable[[], _Uncached], untested: Profile, level: float
    ) -> Entry:
        exact = uncached().drawn
        with enable(self.pipe, config=for_profile(ProfileChoice((untested,), "named"), FixedLevel(level))) as enabled:
            drawn = self._draw(indices)
        samples, trace = enabled.report().to_dict()["samples"], enabled.trace
        assert trace is not None
        losses = {
            "estimate": np.array([sample["estimated_error"] for sample in samples]),
            "work": (trace.executed / trace.uncached).numpy(),  # the denoiser's, which levels choose
            LATENT_LOSS: relative_error(drawn.latents, exact.latents).numpy(),
        }
        for name, metric in self.metrics.items():
            assert drawn.images is not None and exact.images is not None
            losses[LOSS + name] = loss(name, metric, drawn.images, exact.images).numpy()
        return losses

    def _digest(self, indices: Sequence[int]) -> str:
        """Of the prompts of a batch, so that it is drawn again where they are others."""
        return hashlib.sha256(repr([text_of(self.drawer.prompts[i]) for i in indices]).encode()).hexdigest()[:12]

    def _draw(self, indices: Sequence[int]) -> Drawn:
        self.drawn += len(indices)
        return self.drawer.draw(indices)


def _shown(uncached: Callable[[], _Uncached]) -> Entry:
    return uncached().shown


def _timetable_and_guidance(trace: Trace, facts: RunFacts) -> tuple[Timetable, float]:
    """Timetable and guidance of a run. Raises ProfileError where they cannot be known."""
    timetable, steps = facts.timetable, len(trace.records)
    if timetable is None or steps != len(timetable.sigmas) or steps < SHORTEST:
        raise ProfileError(
            f"only whole runs of {SHORTEST} steps or more can be calibrated, with a scheduler whose timetable is known."
        )
    if facts.guidance is None or len({frozenset(record.branches) for record in trace.records}) > 1:
        raise ProfileError("the run's guidance changed half-way: it cannot be calibrated.")
    return timetable, max(1.0, facts.guidance)


def _untested(model: str, shown: Entry) -> Profile:
    """Of runs like this one, with no losses."""
    *sigmas, guidance = shown["timetable"].tolist()
    size = tuple(shown.get("size", np.zeros(0, int)).tolist())
    controls = tuple(shown["controls"].tobytes().decode().split()) if "controls" in shown else None
    facts = Facts(model, shown["solver"].tobytes().decode(), tuple(sigmas), guidance, size=size, controls=controls)
    nothing = dict.fromkeys(NEEDED, np.zeros((0, 1), np.float32))
    return Profile(facts, nothing | {"levels": np.ones(1, np.float32)})


def finer(levels: Sequence[float]) -> tuple[float, ...]:
    """With one more between every two neighbours, at their geometric mean."""
    rising = sorted(levels)
    return tuple(sorted({*rising, *(math.sqrt(a * b) for a, b in itertools.pairwise(rising))}))


def _shared(shown: Sequence[Entry]) -> dict[str, tuple[float, ...]]:
    """What the negative prompts of all runs were, where it was the same for two prompts and more."""
    names = [key for key in shown[0] if key.startswith(NEGATIVE_CONDITIONS) and all(key in entry for entry in shown)]
    rows = {key: torch.from_numpy(np.concatenate([entry[key] for entry in shown])) for key in names}
    same = {key: each[0] for key, each in rows.items() if len(each) > 1 and bool(alike(each, each[0]).all())}
    return {key.removeprefix(NEGATIVE_CONDITIONS): tuple(row.tolist()) for key, row in same.items()}


def batches(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[k : k + size]) for k in range(0, len(indices), size)]


def _bar(shown: bool) -> Progress:
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
