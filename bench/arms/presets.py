"""The published methods as dicache composes them, each swept around its published default, which comes first.

Beside the peers, which are other people's implementations of some of the same methods: whole evaluations are skipped
here by all but the last arms, decisions are per sample, times are true times (`dicache.presets`). Opt-in: `pareto
--presets`. Tables of a model are measured on calibration captions, which the bench never scores, once per setting.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from diffusers import FluxPipeline

from dicache import presets
from dicache.api import enable
from dicache.approximators.fitted.coefficients import Fitted
from dicache.bench.arms.arm import Arm
from dicache.bench.models.reference import Setting, draw_batch, fresh
from dicache.cache import Cache
from dicache.config import Config
from dicache.presets.parts.adacache import FAST
from dicache.presets.parts.magcache import measure_ratios
from dicache.presets.parts.sencache import SensitivityTable, measure_sensitivities
from dicache.reference.scenes import prompts
from dicache.regressions.fit_coefficients import fit
from dicache.regressions.token_scores import fit_token_score
from dicache.sites import Evaluation, Sites, Spans, Sublayers
from dicache.solvers.clock import SchedulerClock
from dicache.token_choice.by_score import TokenScore

CALIBRATION_CAPTIONS = 4
FITTING_CAPTIONS = 8
INTERVALS = (2, 3, 4, 5)
LONG = (7, 8, 10, 13)
ONWARD: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("fora", "taylorseer", "hicache", "foca", "fora sublayers", "taylorseer sublayers"), LONG),
    "teacache": (1.7, 2.4),
    "seacache": (0.85, 1.2, 1.7, 2.4),
    "first_block_cache": (0.4, 0.6),
    "dbcache": (0.35, 0.5, 0.7),
    "dicache": (0.6, 0.8),
    "easycache": (0.45, 0.65, 0.9),
    "magcache": (0.5, 1.0),
    "sencache": (1.5, 2.0, 3.0),
    "adacache": (8.0, 16.0),
    "racer": (0.6, 0.9),
    "speca": (1.2, 1.8),
    "bwcache": (1.2,),
    "gradient_optimized_cache": (5, 6, 8),
    "delta_dit": (6, 8),
    "pab": (8, 12),
    "fastercache": (12, 16),
    "fastercache_attention": (8, 12),
    "fastcache": (0.08,),
    "icc": (6, 8),
    "block_caching": (0.8,),
    "lazydit": (0.6, 0.8),
    "cachequant": (7, 10),
    "toca": (8, 10),
    "clusca": (8, 10),
    "fastcache_tokens": (0.3,),
    "tokencache": (8, 10),
}
"""Beyond what is swept around the published default: where a sweep goes on until it is at its end."""


def _calibration(setting: Setting) -> tuple[FluxPipeline, Callable[[], Any]]:
    pipe, captions = fresh(setting), prompts("calibration", CALIBRATION_CAPTIONS)
    return pipe, lambda: draw_batch(pipe, captions, 0, setting)


@lru_cache
def _ratios(setting: Setting) -> tuple[float, ...]:
    pipe, calibrate = _calibration(setting)
    return measure_ratios(pipe.transformer, calibrate, setting.steps)


@lru_cache
def _fitted(setting: Setting, kind: str, sites: Sites, longest: int, threshold: float = 0.1) -> Fitted:
    """On twice the captions: matrices have more numbers than tables."""
    pipe, captions = fresh(setting), prompts("calibration", FITTING_CAPTIONS)
    guided: dict[str, Any] = {"negative_prompt": [""] * len(captions), "true_cfg_scale": setting.guidance}
    return fit(
        pipe,
        captions,
        steps=setting.steps,
        kind=kind,
        sites=sites,
        longest=longest,
        threshold=threshold,
        batch=setting.batch,
        progress=False,
        **(guided if setting.guidance > 1 else {}),
    )


@lru_cache
def _score(setting: Setting) -> TokenScore:
    captions = prompts("calibration", FITTING_CAPTIONS)
    guided: dict[str, Any] = {"negative_prompt": "", "true_cfg_scale": setting.guidance}
    call = guided if setting.guidance > 1 else {}
    return fit_token_score(fresh(setting), captions, steps=setting.steps, batch=setting.batch, **call)


@lru_cache
def sensitivities(setting: Setting) -> SensitivityTable:
    pipe, calibrate = _calibration(setting)
    calibrate()  # the pipeline sets its scheduler's times
    clock = SchedulerClock(lambda: pipe.scheduler)
    clock.read(pipe.scheduler.timesteps[0])
    return measure_sensitivities(pipe.transformer, calibrate, clock.timeline.timetable.sigmas)


def _arm(
    name: str,
    knob: str,
    published: float,
    around: tuple[float, ...],
    config: Callable[[Any, Setting], Config],
    note: str = "",
) -> Arm:
    """`published` comes first, so that a coarse sweep keeps it."""

    def cache(pipe: FluxPipeline, value: Any, setting: Setting) -> Cache:  # noqa: ANN401
        return enable(pipe, config=config(value, setting))

    @contextmanager
    def prepare(pipe: FluxPipeline, value: Any, setting: Setting) -> Iterator[Setting]:  # noqa: ANN401
        with cache(pipe, value, setting):
            yield setting

    note = note or f"published default: {knob} {published}"
    return Arm(f"preset {name}", "preset", knob, (published, *around), prepare, note, cache=cache, onward=ONWARD[name])


def _scaled(scale: float) -> tuple[tuple[float, int], ...]:
    """AdaCache's codebook with its bounds `scale` times as far."""
    return tuple((scale * bound, gap) for bound, gap in FAST)


def _fastcache(threshold: float, setting: Setting) -> Config:
    return presets.fastcache(_fitted(setting, "ridge", Spans(1), 3), threshold)


def _icc(interval: int, setting: Setting) -> Config:
    return presets.icc(_fitted(setting, "low_rank", Sublayers(), interval - 1), interval)


def _block_caching(threshold: float, setting: Setting) -> Config:
    return presets.block_caching(_fitted(setting, "scale_shift", Spans(1), 3), threshold)


def _cachequant(interval: int, setting: Setting) -> Config:
    return presets.cachequant(_fitted(setting, "affine", Evaluation(), interval - 1), interval=interval)


def _lazydit(error: float, setting: Setting) -> Config:
    return presets.lazydit(_fitted(setting, "gate", Sublayers(), 3, error))


def _tokencache(interval: int, setting: Setting) -> Config:
    return presets.tokencache(_score(setting), interval)


FITTED: tuple[Arm, ...] = (
    _arm("fastcache", "threshold", 0.05, (0.01, 0.02, 0.03, 0.04), _fastcache),
    _arm("icc", "interval", 2, INTERVALS[1:], _icc),
    _arm("block_caching", "threshold", 0.5, (0.1, 0.15, 0.2, 0.3), _block_caching),
    _arm("cachequant", "interval", 2, (3, 4, 5), _cachequant, "without its 8-bit half (`bench.studies.int8`)"),
    _arm("lazydit", "error fitted to", 0.1, (0.05, 0.2, 0.3, 0.4), _lazydit, "its paper trains the gates"),
    _arm("tokencache", "interval", 4, (2, 3, 5, 6), _tokencache, "its paper's schedule is of its own training"),
)
"""Those with coefficients, each fitted once per setting on calibration captions."""

PRESETS: tuple[Arm, ...] = (
    _arm("fora", "interval", 3, (2, 4, 5, 6), lambda v, s: presets.fora(v)),
    _arm("taylorseer", "interval", 6, INTERVALS, lambda v, s: presets.taylorseer(v)),
    _arm("hicache", "interval", 6, INTERVALS, lambda v, s: presets.hicache(v)),
    _arm("foca", "interval", 6, INTERVALS, lambda v, s: presets.foca(v)),
    _arm("teacache", "threshold", 0.6, (0.25, 0.4, 0.8, 1.2), lambda v, s: presets.teacache(v)),
    _arm("seacache", "threshold", 0.3, (0.1, 0.2, 0.45, 0.6), lambda v, s: presets.seacache(v)),
    _arm("first_block_cache", "threshold", 0.05, (0.1, 0.15, 0.2, 0.3), lambda v, s: presets.first_block_cache(v)),
    _arm("dbcache", "threshold", 0.08, (0.04, 0.12, 0.16, 0.24), lambda v, s: presets.dbcache(v)),
    _arm("dicache", "threshold", 0.4, (0.05, 0.1, 0.2, 0.3), lambda v, s: presets.dicache(v)),
    _arm("easycache", "threshold", 0.05, (0.025, 0.1, 0.2, 0.3), lambda v, s: presets.easycache(v)),
    _arm("magcache", "threshold", 0.24, (0.002, 0.005, 0.01, 0.04), lambda v, s: presets.magcache(_ratios(s), v)),
    _arm("sencache", "threshold", 0.07, (0.13, 0.25, 0.5, 1.0), lambda v, s: presets.sencache(sensitivities(s), v)),
    _arm("adacache", "codebook scale", 1.0, (0.25, 0.5, 2.0, 4.0), lambda v, s: presets.adacache(_scaled(v))),
    _arm(
        "racer",
        "threshold",
        0.1,
        (0.03, 0.05, 0.2, 0.4),
        lambda v, s: presets.racer(v, kappa=0.9),
        "threshold and kappa are ours: the paper's could not be had",
    ),
    _arm("fora sublayers", "interval", 3, (2, 4, 5, 6), lambda v, s: presets.fora(v, Sublayers())),
    _arm("taylorseer sublayers", "interval", 6, INTERVALS, lambda v, s: presets.taylorseer(v, sites=Sublayers())),
    _arm("speca", "tau0", 0.3, (0.1, 0.2, 0.5, 0.8), lambda v, s: presets.speca(threshold=v, floor=v / 3)),
    _arm("bwcache", "threshold", 0.15, (0.05, 0.1, 0.3, 0.6), lambda v, s: presets.bwcache(v)),
    _arm("gradient_optimized_cache", "interval", 2, (3, 4), lambda v, s: presets.gradient_optimized_cache(v)),
    _arm("delta_dit", "interval", 2, (3, 4, 5), lambda v, s: presets.delta_dit(v)),
    _arm("pab", "attention range", 2, (3, 4, 6), lambda v, s: presets.pab(v)),
    _arm("fastercache", "interval", 5, (2, 3, 8), lambda v, s: presets.fastercache(v)),
    _arm("toca", "interval", 3, (2, 4, 5, 6), lambda v, s: presets.toca(v)),
    _arm("clusca", "interval", 4, (2, 3, 5, 6), lambda v, s: presets.clusca(v)),
    _arm("fastcache_tokens", "threshold", 0.05, (0.02, 0.1, 0.2), lambda v, s: presets.fastcache_tokens(v)),
    _arm("fastercache_attention", "interval", 3, (2, 4, 6), lambda v, s: presets.fastercache_attention(v)),
    *FITTED,
)
