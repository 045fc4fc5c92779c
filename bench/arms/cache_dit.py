"""cache-dit: DBCache alone and with each of its calibrators, its step masks, and its pruning of single blocks.

It tells the guidance branches apart by the parity of the denoiser's calls, so it is told whether there are two
(`enable_separate_cfg`). It is also told the true number of steps: with another, the state of one run leaks into the
next.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from diffusers import FluxPipeline

from dicache.bench.arms.arm import Arm
from dicache.bench.arms.diffusers_caches import warm_up
from dicache.bench.models.reference import Setting

Prepare = Callable[[FluxPipeline, Any, Setting], AbstractContextManager[Setting]]


@contextmanager
def _quiet() -> Iterator[None]:
    """cache-dit logs every decision."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _common(setting: Setting) -> dict[str, Any]:
    return {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": warm_up(setting),
        "num_inference_steps": setting.steps,
        "enable_separate_cfg": setting.calls_per_step == 2,
    }


@contextmanager
def _enabled(pipe: FluxPipeline, **configs: Any) -> Iterator[None]:  # noqa: ANN401
    import cache_dit

    with _quiet():
        cache_dit.enable_cache(pipe, **configs)
        try:
            yield
        finally:
            cache_dit.disable_cache(pipe)


def _dbcache(calibrator: Callable[[], Any] = lambda: None) -> Prepare:
    @contextmanager
    def prepare(pipe: FluxPipeline, threshold: float, setting: Setting) -> Iterator[Setting]:
        from cache_dit import DBCacheConfig

        config = DBCacheConfig(residual_diff_threshold=threshold, **_common(setting))
        with _enabled(pipe, cache_config=config, calibrator_config=calibrator()):
            yield setting

    return prepare


def _step_mask(calibrator: Callable[[], Any] = lambda: None) -> Prepare:
    @contextmanager
    def prepare(pipe: FluxPipeline, preset: str, setting: Setting) -> Iterator[Setting]:
        from cache_dit import DBCacheConfig, steps_mask

        config = DBCacheConfig(
            steps_computation_mask=steps_mask(mask_policy=preset, total_steps=setting.steps),
            steps_computation_policy="static",
            **_common(setting),
        )
        with _enabled(pipe, cache_config=config, calibrator_config=calibrator()):
            yield setting

    return prepare


@contextmanager
def _dbprune(pipe: FluxPipeline, threshold: float, setting: Setting) -> Iterator[Setting]:
    from cache_dit import DBPruneConfig

    with _enabled(pipe, cache_config=DBPruneConfig(residual_diff_threshold=threshold, **_common(setting))):
        yield setting


def _taylorseer() -> Any:  # noqa: ANN401
    from cache_dit import TaylorSeerCalibratorConfig

    return TaylorSeerCalibratorConfig(taylorseer_order=1)


def _foca() -> Any:  # noqa: ANN401
    from cache_dit import FoCaCalibratorConfig

    return FoCaCalibratorConfig()


def _dmd() -> Any:  # noqa: ANN401
    from cache_dit import DMDCalibratorConfig

    return DMDCalibratorConfig()


def _arm(name: str, knob: str, values: tuple[Any, ...], prepare: Prepare, warmup: float | None = 0.1) -> Arm:
    onward = (0.8, 1.2) if knob == _KNOB else ()  # there are no presets beyond "ultra"
    packages = ("cache-dit",)
    return Arm(f"cache-dit {name}", "peer", knob, values, prepare, packages=packages, warmup=warmup, onward=onward)


_KNOB = "residual_diff_threshold"
_THRESHOLDS = (0.04, 0.05, 0.08, 0.12, 0.2, 0.5)
_PRESETS = ("slow", "medium", "fast", "ultra")
CACHE_DIT = (
    _arm("DBCache", _KNOB, _THRESHOLDS, _dbcache()),
    _arm("DBCache + TaylorSeer", _KNOB, _THRESHOLDS, _dbcache(_taylorseer)),
    _arm("DBCache + FoCa", _KNOB, _THRESHOLDS, _dbcache(_foca)),
    _arm("DBCache + DMD", _KNOB, _THRESHOLDS, _dbcache(_dmd), 0.2),
    _arm("step mask", "preset", _PRESETS, _step_mask(), None),
    _arm("step mask + TaylorSeer", "preset", _PRESETS, _step_mask(_taylorseer), None),
    _arm("DBPrune", _KNOB, (0.04, 0.05, 0.08, 0.12, 0.2, 0.35), _dbprune),
)
