"""The arms of the zoo: what runs on every model, and the peers on those that they support.

dicache by its two defaults and tuned on 24 conditions; fewer steps, by the model's own solver and by its
others; fixed intervals, reusing or along a line; cache-dit, diffusers' caches and DeepCache. An arm that cannot run on
a model fails there, and the part says why.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from dicache.api import enable
from dicache.approximators.base import Approximator
from dicache.approximators.hold import Reuse
from dicache.bench.arms.arm import Arm, Kind
from dicache.bench.arms.cache_dit import CACHE_DIT
from dicache.bench.arms.diffusers_caches import DIFFUSERS
from dicache.bench.arms.lines import HalfLogSnrLine
from dicache.bench.zoo.model import Setting
from dicache.cache import Cache
from dicache.config import Config
from dicache.controllers.fixed import every
from dicache.defaults import for_budget
from dicache.schedules.schedule import Schedule
from dicache.tuning.tune import tune

TUNED_ON = 24
SHARES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.25, 0.2)
FEWEST = (0.15, 0.1)
INTERVALS, LONG = (2, 3, 4, 5), (7, 10)
PEERS = ("DBCache", "DBCache + TaylorSeer", "FirstBlockCache", "MagCache", "TaylorSeer lite")
"""Of the arms in `dicache.bench.arms`."""


def arms(setting: Setting) -> list[Arm]:
    """All of them at this setting."""
    fewer = [_fewer(solver, setting.solver) for solver in dict.fromkeys((setting.solver, *setting.model.solvers))]
    return [*OURS, *fewer, *INTERVALLED, *_peers()]


def _made(
    name: str,
    kind: Kind,
    knob: str,
    cache: Callable[[Any, Any, Setting], Cache],
    values: tuple[Any, ...],
    onward: tuple[Any, ...],
) -> Arm:
    @contextmanager
    def prepare(target: Any, value: Any, setting: Any) -> Iterator[Any]:  # noqa: ANN401
        with cache(target, value, setting):
            yield setting

    return Arm(name, kind, knob, values, prepare, onward=onward)


def _budget(target: Any, value: float, setting: Setting) -> Cache:  # noqa: ANN401
    """By the law alone, as on a model without a profile."""
    return enable(target, config=for_budget(value))


def _paced(target: Any, value: float, setting: Setting) -> Cache:  # noqa: ANN401
    return enable(target, speedup=value)


@lru_cache(maxsize=64)
def _schedule(setting: Setting, speedup: float) -> Schedule:
    model = setting.model
    return tune(
        model.fresh(setting.solver),
        model.conditions("calibration", TUNED_ON, seed=12),
        steps=setting.steps,
        speedup=speedup,
        seed=12_000,
        batch=TUNED_ON,
        call=model.call(),
        progress=False,
    )


def _tuned(target: Any, value: float, setting: Setting) -> Cache:  # noqa: ANN401
    return enable(target, schedule=_schedule(setting, value))


def _fewer(solver: str, own: str) -> Arm:
    @contextmanager
    def prepare(target: Any, value: float, setting: Any) -> Iterator[Any]:  # noqa: ANN401
        if solver != setting.solver:
            target.scheduler = setting.model.scheduler(solver)
        yield dataclasses.replace(setting, solver=solver, steps=max(2, round(value * setting.steps)))

    name = "fewer steps" if solver == own else f"fewer steps, {solver}"
    return Arm(name, "baseline", "share of the steps", SHARES, prepare, onward=FEWEST)


def _interval(name: str, approximator: Approximator, last: int) -> Arm:
    def cache(target: Any, value: int, setting: Setting) -> Cache:  # noqa: ANN401
        due = every(value, setting.steps, first=1 / setting.steps, last=last)
        return enable(target, config=Config(due, approximators=(approximator,)))

    return _made(f"fixed interval, {name}", "baseline", "interval", cache, INTERVALS, LONG)


@contextmanager
def packaged_deepcache(pipe: Any, interval: int) -> Iterator[None]:  # noqa: ANN401
    """PyPI's DeepCache on a pipeline, its cheapest branch."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


@contextmanager
def _deepcache(target: Any, interval: int, setting: Any) -> Iterator[Any]:  # noqa: ANN401
    if not hasattr(target, "unet"):
        raise TypeError(f"DeepCache wraps a UNet; {setting.model.name} has none")
    with packaged_deepcache(target, interval):
        yield setting


@contextmanager
def _on_pipelines(prepare: Any, target: Any, value: Any, setting: Any) -> Iterator[Any]:  # noqa: ANN401
    if setting.model.call() is None:
        raise TypeError(f"it is enabled on a pipeline, and {setting.model.name} has none")
    with prepare(target, value, setting) as changed:
        yield changed


def _peers() -> Sequence[Arm]:
    named = {arm.name.partition(" ")[2]: arm for arm in (*CACHE_DIT, *DIFFUSERS)}
    wrapped = [dataclasses.replace(a, prepare=partial(_on_pipelines, a.prepare)) for a in (named[n] for n in PEERS)]
    return [*wrapped, DEEPCACHE]


DEEPCACHE = Arm(
    "DeepCache", "peer", "cache_interval", (2, 3, 4, 5), _deepcache, packages=("DeepCache",), onward=(7, 10)
)
OURS = (
    _made("dicache", "dicache", "error_budget", _budget, (0.005, 0.01, 0.02, 0.04, 0.08, 0.15), (0.3, 0.6)),
    _made("dicache, speedup", "dicache", "speedup", _paced, (1.25, 1.6, 2.0, 2.5, 3.0, 4.0), (6.0, 8.0)),
    _made("dicache, tuned", "dicache", "speedup", _tuned, (1.5, 2.0, 2.5, 3.0, 4.0), (6.0, 8.0)),
)
INTERVALLED = (_interval("reuse", Reuse(), 0), _interval("line along half log SNR", HalfLogSnrLine(), 1))
EVERYWHERE = ("dicache", "baseline")
"""Kinds of arms that are drawn at every setting of a model. Of peers, there, the three that did best at the first."""
