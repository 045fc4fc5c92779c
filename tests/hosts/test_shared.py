"""Pipelines that share a denoiser, and pipelines of other kinds: image to image, modular."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline, FluxPipeline

import dicache
from dicache.errors import AlreadyEnabledError
from helpers.watching import strips
from pipelines.modular import draw_modular, modular_flux
from pipelines.neighbours import BUDGET, GENERATIONS, ORDERS, STEPS, quiet, traces
from pipelines.tiny import draw_flux, embeds, generators, make_flux


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [STEPS, 12])
def test_of_two_pipelines_with_one_transformer_the_clock_follows_the_one_that_runs(steps, order):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    alone = quiet(FluxPipeline.from_pipe(make_flux(), scheduler=scheduler))
    with dicache.enable(alone, error_budget=BUDGET) as cache:
        expected, expected_strips = draw_flux(alone, [1], steps), strips(cache)
    one = quiet(make_flux())
    cache = dicache.enable(one, error_budget=BUDGET) if order == "after dicache" else None
    other = quiet(FluxPipeline.from_pipe(one, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0)))
    assert other.transformer is one.transformer and other.scheduler is not one.scheduler
    with cache or dicache.enable(one, error_budget=BUDGET) as cache:
        first, first_strips = draw_flux(one, [1], STEPS), strips(cache)
        assert torch.equal(draw_flux(other, [1], steps), expected) and strips(cache) == expected_strips
        assert "=" in expected_strips[0] and len(expected_strips[0]) == steps
        assert torch.equal(draw_flux(one, [1], STEPS), first) and strips(cache) == first_strips
        with pytest.raises(AlreadyEnabledError):
            dicache.enable(other, error_budget=BUDGET)
    assert not traces(other.transformer)["hooks"]


def test_audits_follow_the_pipeline_that_runs():
    one = quiet(make_flux())
    other = quiet(FluxPipeline.from_pipe(one, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0)))
    plain = draw_flux(other, [1], STEPS)
    with dicache.enable(one, error_budget=BUDGET, audit=1.0) as cache:
        cached = draw_flux(other, [1], STEPS)
    (error,) = cache.report().to_dict()["audit"]["errors"]
    assert error == pytest.approx(float((cached - plain).norm() / plain.norm()), rel=1e-3)


def test_image_to_image_from_the_same_components_runs_part_of_the_steps():
    one = quiet(make_flux())
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def draw_from(pipe: Any) -> torch.Tensor:
        return pipe(
            image=image,
            strength=0.75,
            prompt_embeds=embeds([1], 8, 32, salt=1),
            pooled_prompt_embeds=embeds([1], 32, salt=2),
            num_inference_steps=16,
            generator=generators([1]),
            output_type="latent",
            height=32,
            width=32,
        ).images

    one.vae.register_to_config(shift_factor=0.06)
    other = quiet(FluxImg2ImgPipeline.from_pipe(one))
    plain = draw_from(other)
    with dicache.enable(one, error_budget=BUDGET) as cache:
        draw_flux(one, [1], STEPS)
        drawn = draw_from(other)
        (strip,) = strips(cache)
    assert len(strip) == 12 and "=" in strip
    assert (drawn - plain).norm() / plain.norm() < BUDGET


@pytest.mark.parametrize("enabled_on", ["itself", "a pipeline with the same transformer"])
def test_a_modular_pipeline_is_cached(enabled_on):
    plain = draw_modular(modular_flux(make_flux()), [1, 2])
    flux = make_flux()
    pipe = modular_flux(flux)
    with dicache.enable(pipe, error_budget=0.0):
        assert torch.equal(draw_modular(pipe, [1, 2]), plain)
    if enabled_on != "itself":
        flux = FluxPipeline.from_pipe(flux, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0))
    with dicache.enable(pipe if enabled_on == "itself" else flux, error_budget=BUDGET) as cache:
        for _ in GENERATIONS:
            drawn = draw_modular(pipe, [1, 2])
            assert cache.report().compute_speedup > 1.2 and len(strips(cache)[0]) == STEPS
    assert (drawn - plain).norm() / plain.norm() < BUDGET
