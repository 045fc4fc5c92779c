"""dicache itself and the honest baselines: what a user can do without a cache, and schedules that look at nothing."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import FluxPipeline

from dicache.api import enable
from dicache.approximators.base import Approximator
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.newton import Newton
from dicache.bench.arms import Arm, Setting
from dicache.bench.measure import scheduler
from dicache.config import Config
from dicache.controllers.fixed import every
from dicache.probes.first_blocks import FirstBlocks

FRACTIONS = (0.7, 0.6, 0.5, 0.4, 0.3)
INTERVALS = (2, 3, 4, 5, 6)
BUDGETS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)


@contextmanager
def _fewer(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
    yield dataclasses.replace(setting, steps=max(2, round(value * setting.steps)))


@contextmanager
def _better_solver(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
    changed = dataclasses.replace(setting, steps=max(2, round(value * setting.steps)), solver="dpm++")
    pipe.scheduler = scheduler(changed)
    yield changed


def _interval(approximator: Approximator) -> Callable[[FluxPipeline, Any, Setting], Any]:
    @contextmanager
    def prepare(pipe: FluxPipeline, value: int, setting: Setting) -> Iterator[Setting]:
        config = Config(every(value, setting.steps), approximators=(approximator,), probe=FirstBlocks(depth=0))
        with enable(pipe, config=config):
            yield setting

    return prepare


@contextmanager
def _budget(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
    with enable(pipe, error_budget=value):
        yield setting


BASELINES = (
    Arm("fewer steps", "baseline", "share of the steps", FRACTIONS, _fewer),
    Arm("fewer steps, DPM-Solver++", "baseline", "share of the steps", FRACTIONS, _better_solver),
    Arm("fixed interval, reuse", "baseline", "interval", INTERVALS, _interval(Reuse())),
    Arm("fixed interval, order 1", "baseline", "interval", INTERVALS, _interval(Extrapolate())),
    Arm("fixed interval, order 2", "baseline", "interval", INTERVALS, _interval(Newton(2))),
)
DICACHE = (Arm("dicache", "dicache", "error_budget", BUDGETS, _budget),)
