"""dicache itself and the honest baselines: what a user can do without a cache, and schedules that look at nothing.

"dicache, speedup on twice the steps" plays twice the setting's steps at twice the speed-up: the same work, on a finer
grid. Its distance to the limit says whether a cache makes a better solver of the same cost; from the uncached run of
the setting it is at least as far as that is from the limit.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from diffusers import FluxPipeline

from dicache.api import enable
from dicache.approximators.base import Approximator
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.newton import Newton
from dicache.bench.arms.arm import Arm, Kind
from dicache.bench.arms.lines import HalfLogSnrLine
from dicache.bench.arms.solvers import SOLVERS
from dicache.bench.models.reference import Setting, fresh
from dicache.cache import Cache
from dicache.config import Config
from dicache.controllers.fixed import every
from dicache.defaults import for_budget, for_profile
from dicache.finders.multistep import Multistep
from dicache.measuring.schedule_measurements import Calibration
from dicache.models.identity import identity
from dicache.promise.choose_profile import ProfileChoice, shipped
from dicache.promise.keep_budget import FixedLevel
from dicache.reference.scenes import prompts
from dicache.schedules.schedule import Schedule
from dicache.sites import Evaluation

INTERVALS = (2, 3, 4, 5, 6)
LONG_INTERVALS = (7, 8, 10, 13)
LEVELS = (0.006, 0.014, 0.034, 0.083, 0.18, 0.4)
SPEEDUPS = (1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.5, 4.5)
COSTS = (0.72, 0.62, 0.52, 0.45, 0.38, 0.31, 0.25, 0.2)
FITTED_ON = 24
"""Calibration captions that the slopes of a schedule are fitted on."""
BUDGETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4)


def _made_of_dicache(
    name: str,
    kind: Kind,
    knob: str,
    values: tuple[Any, ...],
    cache: Callable[[FluxPipeline, Any, Setting], Cache],
    onward: tuple[Any, ...] = (),
) -> Arm:
    @contextmanager
    def prepare(pipe: FluxPipeline, value: Any, setting: Setting) -> Iterator[Setting]:  # noqa: ANN401
        with cache(pipe, value, setting):
            yield setting

    return Arm(name, kind, knob, values, prepare, cache=cache, onward=onward)


def _interval(name: str, approximator: Approximator, last: int = 0, *, warm: bool = True) -> Arm:
    """With a fifth of the steps computed at the start if `warm`, else the first alone."""

    def cache(pipe: FluxPipeline, value: int, setting: Setting) -> Cache:
        steps = setting.steps
        due = every(value, steps, last=last) if warm else every(value, steps, first=1 / steps, last=last)
        return enable(pipe, config=Config(due, approximators=(approximator,)))

    return _made_of_dicache(f"fixed interval, {name}", "baseline", "interval", INTERVALS, cache, LONG_INTERVALS)


@contextmanager
def _finer(pipe: FluxPipeline, value: float, setting: Setting) -> Iterator[Setting]:
    with enable(pipe, speedup=2 * value):
        yield dataclasses.replace(setting, steps=2 * setting.steps)


def _budget(pipe: FluxPipeline, value: float, setting: Setting) -> Cache:
    """By the law alone, as on a model without a profile."""
    return enable(pipe, config=for_budget(value))


def _paced(pipe: FluxPipeline, value: float, setting: Setting) -> Cache:
    return enable(pipe, speedup=value)


@lru_cache(maxsize=2)
def _measurements(setting: Setting) -> tuple[FluxPipeline, Calibration]:
    """Where the slopes of schedules are fitted."""
    call = {"negative_prompt": "", "true_cfg_scale": setting.guidance} if setting.guidance > 1 else {}
    captions = prompts("calibration", FITTED_ON, seed=12)
    return fresh(setting), Calibration(captions, setting.steps, seed=12_000, batch=FITTED_ON, call=call)


@lru_cache(maxsize=32)
def multistep(setting: Setting, cost: float) -> Schedule:
    """Found on FITTED_ON calibration captions."""
    pipe, calibration = _measurements(setting)
    schedule = Multistep().find(pipe, Evaluation(), calibration, cost=cost)
    assert isinstance(schedule, Schedule)
    return schedule


def _multistep(pipe: FluxPipeline, value: float, setting: Setting) -> Cache:
    return enable(pipe, schedule=multistep(setting, value))


def _profiled(pipe: FluxPipeline, value: float, setting: Setting) -> Cache:
    """By the shipped profile that fits the setting, at internal budgets as they are; fails where none does."""
    choice = ProfileChoice(shipped(identity(pipe.transformer)), "named")
    return enable(pipe, config=for_profile(choice, FixedLevel(value)))


BASELINES = (
    *SOLVERS,
    _interval("reuse", Reuse()),
    _interval("order 1", Extrapolate()),
    _interval("order 2", Newton(2)),
    _interval("reuse, last step computed", Reuse(), last=1),
    _interval("order 1, last step computed", Extrapolate(), last=1),
    _interval("reuse, no warm-up", Reuse(), warm=False),
    _interval("line along half log SNR, first and last computed", HalfLogSnrLine(), last=1, warm=False),
)
DICACHE = (
    _made_of_dicache("dicache", "dicache", "error_budget", BUDGETS, _budget, (0.6, 0.8)),
    _made_of_dicache("dicache, speedup", "dicache", "speedup", SPEEDUPS, _paced, (6.0, 8.0)),
    _made_of_dicache("dicache, calibrated", "dicache", "internal budget", LEVELS, _profiled, (0.8,)),
)
SCHEDULED = (_made_of_dicache("dicache, multistep schedule", "dicache", "cost", COSTS, _multistep, (0.15, 0.11)),)
FINER = (
    Arm(
        "dicache, speedup on twice the steps",
        "dicache",
        "speedup",
        (1.5, 2.0, 2.5, 3.0, 3.5),
        _finer,
        onward=(5.0, 7.0),
    ),
)
