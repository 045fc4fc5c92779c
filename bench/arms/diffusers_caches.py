"""The caches that diffusers ships, each swept over its main knob, with its best warm-up where it has one.

FluxPipeline calls its denoiser once per guidance branch, inside `cache_context("cond")` and `("uncond")`. First-block,
TaylorSeer, MagCache and SeaCache keep a state per context. Pyramid attention broadcast and FasterCache keep one for all
calls and so mix the branches: they are run as they are, and say so. Whatever a cache raises while drawing is left to
the harness.
"""

import ast
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from dicache.bench.arms.arm import Arm
from dicache.bench.models.reference import Setting

CacheConfig = Any
"""One of the config classes of diffusers, which have no common base."""
Prepare = Callable[[FluxPipeline, Any, Setting], AbstractContextManager[Setting]]

_MIXED = "one state for all calls: with sequential guidance the branches get each other's attention"
_UNGUIDED = "expects both guidance branches in one batch, and outputs of 4 or 5 dimensions; FluxPipeline has neither"


def warm_up(setting: Setting) -> int:
    """Steps computed at the start."""
    return math.ceil(setting.warmup * setting.steps)


def calibration_run(pipe: FluxPipeline, setting: Setting) -> None:
    """Draws calibration captions, which the bench never scores, under the setting."""
    setting.calibrate(pipe)


@contextmanager
def _enabled(pipe: FluxPipeline, config: CacheConfig) -> Iterator[None]:
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


def _with(build: Callable[[FluxPipeline, Any, Setting], CacheConfig]) -> Prepare:
    @contextmanager
    def prepare(pipe: FluxPipeline, value: Any, setting: Setting) -> Iterator[Setting]:  # noqa: ANN401
        with _enabled(pipe, build(pipe, value, setting)):
            yield setting

    return prepare


def _first_block(pipe: FluxPipeline, threshold: float, setting: Setting) -> CacheConfig:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=threshold)


def _taylorseer(pipe: FluxPipeline, interval: int, setting: Setting) -> CacheConfig:
    """Every branch output is predicted; what only feeds a predicted output is skipped."""
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=warm_up(setting),
        taylor_factors_dtype=torch.float32,
        cache_identifiers=[
            r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
            r"single_transformer_blocks\.\d+\.proj_out",
        ],
        skip_predict_identifiers=[r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"],
    )


def _taylorseer_lite(pipe: FluxPipeline, interval: int, setting: Setting) -> CacheConfig:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(
        cache_interval=interval,
        disable_cache_before_step=warm_up(setting),
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )


def _magcache(pipe: FluxPipeline, threshold: float, setting: Setting) -> CacheConfig:
    """Without a limit on the steps skipped in a row: the default of 3 stops at 0.4 of the work."""
    from diffusers import MagCacheConfig

    return MagCacheConfig(
        threshold=threshold,
        max_skip_steps=setting.steps,
        retention_ratio=setting.warmup,
        num_inference_steps=setting.steps,
        mag_ratios=_mag_ratios(pipe, setting),
    )


def _mag_ratios(pipe: FluxPipeline, setting: Setting) -> list[float]:
    """MagCache prints one list of ratios per guidance branch, to be copied by hand; here, their mean."""
    from diffusers import MagCacheConfig

    config, printed = MagCacheConfig(calibrate=True, num_inference_steps=setting.steps), StringIO()
    with redirect_stdout(printed), _enabled(pipe, config):
        calibration_run(pipe, setting)
    lists = [line for line in printed.getvalue().splitlines() if line.startswith("[1")]
    ratios = [ast.literal_eval(line) for line in lists]
    return [sum(step) / len(step) for step in zip(*ratios, strict=True)]


@contextmanager
def _seacache(pipe: FluxPipeline, threshold: float, setting: Setting) -> Iterator[Setting]:
    """Without a limit on the steps skipped in a row: the default of 2 stops at half the work."""
    from diffusers import SeaCacheConfig

    side = pipe.default_sample_size * pipe.vae_scale_factor

    def frames(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Per sample the latent as a video of one frame, (C, 1, H, W)."""
        latents = pipe._unpack_latents(kwargs["hidden_states"], side, side, pipe.vae_scale_factor)
        return list(latents[:, :, None])

    config = SeaCacheConfig(
        threshold=threshold,
        retention_steps=warm_up(setting),
        max_consecutive_cached=0,
        raw_vision_callback=frames,
    )
    with _enabled(pipe, config), _steps_named(pipe, setting):
        yield setting


@contextmanager
def _steps_named(pipe: FluxPipeline, setting: Setting) -> Iterator[None]:
    """`cache_context` also says which step it is, which SeaCache needs and FluxPipeline leaves out."""
    without_step = pipe.transformer.cache_context

    def with_step(name: str) -> AbstractContextManager[None]:
        step = pipe.scheduler.step_index or 0
        sigma = float(pipe.scheduler.sigmas[step])
        return without_step(name, step_index=step, sigma=sigma, num_inference_steps=setting.steps)

    pipe.transformer.cache_context = with_step
    try:
        yield
    finally:
        del pipe.transformer.cache_context


def _pyramid(pipe: FluxPipeline, skip_range: int, setting: Setting) -> CacheConfig:
    """From timestep 800 down to the end. It counts calls, not steps."""
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=skip_range,
        spatial_attention_timestep_skip_range=(-1, 800),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _fastercache(pipe: FluxPipeline, skip_range: int, setting: Setting, distilled: bool) -> CacheConfig:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=skip_range,
        spatial_attention_block_identifiers=(r"transformer_blocks.*attn",),
        attention_weight_callback=lambda module: 0.5,
        tensor_format="BCHW",
        is_guidance_distilled=distilled,
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _fastercache_guided(pipe: FluxPipeline, skip_range: int, setting: Setting) -> CacheConfig:
    return _fastercache(pipe, skip_range, setting, distilled=False)


def _fastercache_attention(pipe: FluxPipeline, skip_range: int, setting: Setting) -> CacheConfig:
    return _fastercache(pipe, skip_range, setting, distilled=True)


def _arm(
    name: str,
    knob: str,
    values: tuple[Any, ...],
    prepare: Prepare,
    note: str = "",
    warmup: float | None = None,
    onward: tuple[Any, ...] = (),
) -> Arm:
    packages = ("diffusers",)
    return Arm(f"diffusers {name}", "peer", knob, values, prepare, note, packages, warmup, onward=onward)


_THRESHOLDS = (0.04, 0.05, 0.08, 0.12, 0.16, 0.2)
DIFFUSERS = (
    _arm("FirstBlockCache", "threshold", _THRESHOLDS, _with(_first_block), "has no warm-up", onward=(0.3, 0.45, 0.65)),
    _arm("TaylorSeer", "interval", (2, 3, 4, 6, 8), _with(_taylorseer), warmup=0.05, onward=(10, 13)),
    _arm("TaylorSeer lite", "interval", (2, 3, 4, 6, 8), _with(_taylorseer_lite), warmup=0.2, onward=(10, 13)),
    _arm(
        "MagCache",
        "threshold",
        (0.03, 0.04, 0.06, 0.12, 0.24, 0.48),
        _with(_magcache),
        "calibrated, at every point anew, on 4 calibration captions",
        warmup=0.1,
        onward=(0.7, 1.0, 1.5, 2.5),
    ),
    _arm(
        "SeaCache",
        "threshold",
        (0.07, 0.1, 0.15, 0.2, 0.3, 0.4),
        _seacache,
        "FluxPipeline does not say which step it is; the bench adds it",
        warmup=0.05,
        onward=(0.6, 0.8, 1.2),
    ),
    _arm("PyramidAttentionBroadcast", "skip range", (2, 3, 4, 6, 8), _with(_pyramid), _MIXED, onward=(12,)),
    _arm("FasterCache", "skip range", (2,), _with(_fastercache_guided), _UNGUIDED),
    _arm(
        "FasterCache, attention only", "skip range", (2, 3, 4, 6), _with(_fastercache_attention), _MIXED, onward=(8, 12)
    ),
)
