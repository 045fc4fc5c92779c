"""Defects that other caches have, or any two of them on one model, each a test that dicache has it not."""

from typing import Any

import pytest
import torch
from diffusers import (
    FirstBlockCacheConfig,
    apply_first_block_cache,
)

import dicache
from dicache.errors import AlreadyEnabledError, ModeError
from pipelines.bare import bare_loop, flux_like, make_flux2
from pipelines.neighbours import BUDGET, FLUX, SD3, STEPS, WAN, draw, quiet
from pipelines.tiny import (
    PIPELINES,
    draw_flux,
    embeds,
    lively,
    make_flux,
    make_wan,
)


def test_two_denoisers_in_one_loop_do_not_share_a_context():
    """One global context for whatever is called. - ParaAttention"""
    text = embeds([1], 8, 32, salt=1)

    def loop(models: list[Any], latents: list[torch.Tensor]) -> list[torch.Tensor]:
        with torch.no_grad():
            for i in range(STEPS):
                time = torch.tensor([1000 * (1 - i / STEPS)])
                latents = [
                    x - m(x, time, text, return_dict=False)[0] / STEPS for m, x in zip(models, latents, strict=True)
                ]
        return latents

    models = [make_wan().transformer, make_wan().transformer]
    torch.nn.init.normal_(models[1].proj_out.weight, std=0.2)
    latents = [embeds([sample], 16, 2, 4, 4) for sample in (1, 2)]
    with dicache.enable(models[0], error_budget=BUDGET), dicache.enable(models[1], error_budget=BUDGET):
        alone = [loop([model], [x])[0] for model, x in zip(models, latents, strict=True)]
        assert all(map(torch.equal, loop(models, latents), alone))


def test_a_cache_of_diffusers_that_comes_later_is_told_apart():
    """Two caches on one model, each caching the other's guesses. - any"""
    other = quiet(make_flux())
    plain = draw_flux(other, [1], STEPS)
    other.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    theirs = draw_flux(other, [1], STEPS)
    pipe = quiet(make_flux())
    cache = dicache.enable(pipe, error_budget=BUDGET)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    with pytest.raises(AlreadyEnabledError, match="disable_cache"):
        draw_flux(pipe, [1], STEPS)
    cache.disable()
    assert pipe.transformer.is_cache_enabled
    assert torch.equal(draw_flux(pipe, [1], STEPS), theirs) and not torch.equal(theirs, plain)
    pipe.transformer.disable_cache()
    assert torch.equal(draw_flux(pipe, [1], STEPS), plain)
    with dicache.enable(pipe, error_budget=BUDGET):
        draw_flux(pipe, [1], STEPS)
        apply_first_block_cache(pipe.transformer, FirstBlockCacheConfig(threshold=10.0))  # on the model's blocks alone
        with pytest.raises(AlreadyEnabledError, match="fbc_"):
            draw_flux(pipe, [1], STEPS)
    model = lively(make_flux2())  # nothing says here that a run is over
    call = flux_like(model, axes=4)
    with dicache.enable(model, error_budget=BUDGET):
        bare_loop(model, call, STEPS)
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=10.0))
        with pytest.raises(AlreadyEnabledError, match="fbc_"):
            bare_loop(model, call, STEPS)


def test_a_threshold_that_means_nothing_here_is_not_needed():
    """A threshold that works on one model is inert on another. - SGLang issue 33828, on cache-dit's default"""
    for name in (FLUX, SD3, WAN):
        tiny = PIPELINES[name]
        with dicache.enable(pipe := tiny.make(), error_budget=0.2) as cache:
            draw(tiny, pipe, 1)
        assert cache.report().compute_speedup > 1
    with pytest.raises(ModeError):
        dicache.enable(make_flux())
