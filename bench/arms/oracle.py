"""How much adaptivity could win at all: the best schedules found by search, at each amount of work.

A schedule says which steps compute; between them the noise is extrapolated, as dicache does. Simulated annealing moves
one computed step at a time and keeps the number of computed steps (BudCache searches so, arXiv 2606.13496); it starts
from the way that dicache plans for a sample of which it knows nothing.

static      one schedule for all captions, searched on calibration captions and judged, like every arm, on test captions
per prompt  one schedule per caption, searched on the very test captions: nobody can know it in advance, it bounds what
knowing the prompt is worth

Neither is a proven optimum: both are the best that this many trials found.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from dicache.api import enable
from dicache.approximators.noise import ExtrapolateNoise
from dicache.bench.arms.arm import Arm
from dicache.bench.models.reference import Setting, draw_batch, fresh
from dicache.config import Config
from dicache.controllers.fixed import masks
from dicache.finders.annealing import Masks, anneal
from dicache.planning.law_plan import plan_of
from dicache.promise.metrics import relative_error
from dicache.solvers.timeline import timeline


def planned(computed: int, pipe: FluxPipeline, steps: int) -> list[bool]:
    """A start: the way that dicache plans for a sample of which it knows nothing."""
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=0.0)
    way = plan_of(timeline(pipe.scheduler).timetable, longest=6, last=1).way(computed)
    return [i in way for i in range(steps)]


def heats(trials: int) -> np.ndarray:
    """Falling evenly to 0."""
    return 0.1 * (1 - np.arange(trials) / trials)


class Search:
    """Runs masks on a fixed batch of captions against their uncached latents. Nothing is drawn before it is needed."""

    captions: list[str]
    setting: Setting

    def __init__(self, captions: Sequence[str], setting: Setting) -> None:
        self.captions, self.setting = list(captions), dataclasses.replace(setting, batch=len(captions))
        self.masks: dict[tuple[int, bool], Masks] = {}

    @cached_property
    def pipe(self) -> FluxPipeline:
        return fresh(self.setting)

    @cached_property
    def reference(self) -> Tensor:
        return draw_batch(self.pipe, self.captions, 0, self.setting)

    def cost(self, rows: Masks) -> np.ndarray:
        reference = self.reference
        with torch.no_grad(), enable(self.pipe, config=_config(rows)):
            latents = draw_batch(self.pipe, self.captions, 0, self.setting)
        return relative_error(latents, reference).numpy()

    def best(self, computed: int, *, trials: int, shared: bool) -> Masks:
        """(B, steps); searched once."""
        if (computed, shared) not in self.masks:
            start = np.array([planned(computed, fresh(self.setting), self.setting.steps)] * len(self.captions))
            self.masks[computed, shared] = anneal(start, self.cost, heats=heats(trials), seed=0, shared=shared, first=2)
        return self.masks[computed, shared]


def _config(rows: Masks) -> Config:
    return Config(masks(rows.tolist()), approximators=(ExtrapolateNoise(),))


def static_arm(search: Search, counts: Sequence[int], *, trials: int) -> Arm:
    """The best static schedules of `search`, by how many steps compute."""

    @contextmanager
    def prepare(pipe: FluxPipeline, value: int, setting: Setting) -> Iterator[Setting]:
        with enable(pipe, config=_config(search.best(value, trials=trials, shared=True)[:1])):
            yield setting

    note = f"searched on {len(search.captions)} calibration captions, {trials} trials a point"
    return Arm("best static schedule found", "oracle", "computed steps", tuple(counts), prepare, note)


def prompt_arm(captions: Sequence[str], setting: Setting, counts: Sequence[int], *, trials: int) -> Arm:
    """The best schedule of every test caption, by how many steps compute."""
    search = Search(captions, setting)

    @contextmanager
    def prepare(pipe: FluxPipeline, value: int, setting: Setting) -> Iterator[Setting]:
        with enable(pipe, config=_config(search.best(value, trials=trials, shared=False))):
            yield dataclasses.replace(setting, batch=len(captions))

    return Arm("per-prompt oracle", "oracle", "computed steps", tuple(counts), prepare, f"{trials} trials a point")
