"""What is held against the plain pipeline: dicache, and the caches of diffusers and cache-dit, at two speed-ups.

All of the fixed ones compute the same steps (`due`): the first tenth and then one of `interval`, so that at equal
executed work only what else they do is left. FirstBlockCache has no schedule: its threshold is the one at which it
would have computed as many steps of a plain run (`first_block_changes`).
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dicache.api import enable
from dicache.cache import Cache
from dicache.config import Config
from dicache.controllers.fixed import every
from dicache.sites import Spans

WARM = 0.1
"""Share of the steps computed first."""


@dataclass(frozen=True)
class Plan:
    """What an arm may know of the run."""

    steps: int
    changes: Sequence[float] = ()
    """Of the first block's residual from step to step, in a plain run."""


Enter = Callable[[Any, Plan], AbstractContextManager[Cache | None]]


@dataclass(frozen=True)
class Arm:
    name: str
    enter: Enter
    """`enter(pipe, plan)`: inside it the pipeline draws in the arm's way; yields the cache where it is dicache."""


def due(interval: int, steps: int) -> list[bool]:
    """Whether each step computes."""
    warm = math.ceil(WARM * steps)
    return [i < warm or (i - warm + 1) % interval == 0 for i in range(steps)]


def ours(name: str, **asked: Any) -> Arm:  # noqa: ANN401
    @contextmanager
    def enter(pipe: Any, plan: Plan) -> Iterator[Cache]:  # noqa: ANN401
        with enable(pipe, **asked) as cache:
            yield cache

    return Arm(f"dicache {name}", enter)


def blocks(interval: int, **asked: Any) -> Arm:  # noqa: ANN401
    """Every block on its own, at the same steps as the others."""

    @contextmanager
    def enter(pipe: Any, plan: Plan) -> Iterator[Cache]:  # noqa: ANN401
        config = Config(every(interval, plan.steps, first=WARM), sites=Spans())
        with enable(pipe, config=config, **asked) as cache:
            yield cache

    return Arm(f"dicache, single blocks, one step of {interval}", enter)


def first_block(interval: int) -> Arm:
    @contextmanager
    def enter(pipe: Any, plan: Plan) -> Iterator[None]:  # noqa: ANN401
        from diffusers import FirstBlockCacheConfig

        threshold = _threshold(plan.changes, sum(due(interval, plan.steps)))
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        try:
            yield
        finally:
            pipe.transformer.disable_cache()

    return Arm(f"diffusers FirstBlockCache, one step of {interval}", enter)


def taylorseer(interval: int) -> Arm:
    @contextmanager
    def enter(pipe: Any, plan: Plan) -> Iterator[None]:  # noqa: ANN401
        from diffusers import TaylorSeerCacheConfig

        warm = math.ceil(WARM * plan.steps)
        config = TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=warm,
            use_lite_mode=True,
            taylor_factors_dtype=pipe.transformer.dtype,
        )
        pipe.transformer.enable_cache(config)
        try:
            yield
        finally:
            pipe.transformer.disable_cache()

    return Arm(f"diffusers TaylorSeer (lite), one step of {interval}", enter)


def cache_dit(interval: int, *, taylor: bool = False) -> Arm:
    @contextmanager
    def enter(pipe: Any, plan: Plan) -> Iterator[None]:  # noqa: ANN401
        import cache_dit
        from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig

        config = DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            num_inference_steps=plan.steps,
            enable_separate_cfg=False,
            steps_computation_mask=[int(computes) for computes in due(interval, plan.steps)],
            steps_computation_policy="static",
        )
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # it logs every decision
        try:
            calibrator = TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
            cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
            try:
                yield
            finally:
                cache_dit.disable_cache(pipe)
        finally:
            logging.disable(before)

    return Arm(f"cache-dit DBCache{' + TaylorSeer' if taylor else ''}, one step of {interval}", enter)


@contextmanager
def first_block_changes(denoiser: Any) -> Iterator[list[float]]:  # noqa: ANN401
    """Watches a plain run: relative L1 changes of the first block's residual, as FirstBlockCache sees them."""
    residuals: list[Tensor] = []

    def after(block: Any, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        shown = output if isinstance(output, Tensor) else output[-1]
        residuals.append(shown - hidden)

    stack = getattr(denoiser, "transformer_blocks", None) or denoiser.blocks
    handle = stack[0].register_forward_hook(after, with_kwargs=True)
    changes: list[float] = []
    try:
        yield changes
    finally:
        handle.remove()
        pairs = zip(residuals[1:], residuals, strict=False)
        seen = [(new - old).abs().mean() / old.abs().mean() for new, old in pairs]
        changes += torch.stack(seen).tolist() if seen else []


def _threshold(changes: Sequence[float], computed: int) -> float:
    """The least of a few at which at most `computed` steps compute, if changes from the last computed step add up."""
    for exponent in range(-16, 9):
        threshold = 2.0 ** (exponent / 2)
        total, steps = 0.0, 1
        for change in changes:
            total += change
            if total > threshold:
                total, steps = 0.0, steps + 1
        if steps <= computed:
            return threshold
    return threshold


def rivals(interval: int) -> list[Arm]:
    return [
        first_block(interval),
        taylorseer(interval),
        cache_dit(interval),
        cache_dit(interval, taylor=True),
    ]
