"""Audits: what they find is what an uncached run shows."""

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FluxKontextPipeline,
    HeunDiscreteScheduler,
)

import dicache
from dicache.errors import ModeError
from dicache.hosts.audit import Audited, summary
from helpers.calibrating import STEPS, Captioned
from pipelines.controls import draw_unet, make_unet
from pipelines.tiny import PIPELINES, draw_flux, draw_wan, make_flux, make_wan
from pipelines.videos import make_wan_pair


def true_errors(plain, cached):
    return ((cached - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)).tolist()


@pytest.mark.parametrize("name", PIPELINES)
def test_an_audit_finds_the_error_that_an_uncached_run_shows(name):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    plain = tiny.draw(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, error_budget=0.5, audit=1.0) as cache:
        cached = tiny.draw(pipe, [1, 2], STEPS)
    audit = cache.report().to_dict()["audit"]
    if plain.shape[1] != 16 and "pixart" in name:  # learned variance: outputs are not shaped like the latent
        assert audit["samples"] == 0
        return
    assert audit["errors"] == pytest.approx(true_errors(plain, cached), rel=0.02, abs=1e-5)


def test_audits_follow_a_multistep_solver_and_change_nothing_of_the_run():
    pipe = Captioned()
    pipe.pipe.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
    )
    plain = pipe.draw([1, 2, 3])
    with dicache.enable(pipe, error_budget=0.5) as cache:
        unwatched = pipe.draw([1, 2, 3])
    with dicache.enable(pipe, error_budget=0.5, audit=1.0) as cache:
        cached = pipe.draw([1, 2, 3])
    assert torch.equal(cached, unwatched)
    assert cache.report().to_dict()["audit"]["errors"] == pytest.approx(true_errors(plain, cached), rel=0.02)


def test_audits_take_their_share_of_the_samples_over_runs():
    pipe = Captioned()
    with dicache.enable(pipe, error_budget=0.5, audit=0.3) as cache:
        for k in range(8):
            pipe.draw(range(6 * k, 6 * k + 6))
        found = cache.report().to_dict()["audit"]
    assert 6 <= found["samples"] <= 24 and found["within"] is not None


def test_too_few_within_budget_is_called_drift_and_chance_is_not():
    good, bad = Audited(0.04, 0.05), Audited(0.06, 0.05)
    assert not summary(([good] * 7 + [bad] + [good]) * 11, 0.9)["drift"], "one in nine is what was promised"
    assert summary(([good] * 3 + [bad]) * 25, 0.9)["drift"], "one in four is not"
    assert summary([good] * 88 + [bad] * 12, 0.9)["drift"], "a dozen in a row is a drift that has just begun"
    assert summary([], 0.9)["p"] is None and summary([good], None)["p"] is None


def make_kontext():
    flux = make_flux()
    flux.vae.register_to_config(shift_factor=0.06)
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxKontextPipeline(scheduler=flux.scheduler, vae=flux.vae, transformer=flux.transformer, **nothing)


def draw_kontext(pipe):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return draw_flux(pipe, [1], STEPS, image=picture, _auto_resize=False, max_area=32 * 32)


def unguided(pipe, index, timestep, kwargs):
    if index == STEPS // 2:
        pipe._guidance_scale = 1.0
    return {}


def edited(pipe, index, timestep, kwargs):
    return {"latents": kwargs["latents"] * 0.9} if index == STEPS // 2 else {}


def make_random(scheduler=None):
    pipe = make_unet()
    pipe.scheduler = scheduler or DDPMScheduler(clip_sample=False)
    return pipe


def draw_random(pipe):
    return draw_unet(pipe, [1], STEPS, generator=None)


NOT_FOLLOWED = {
    "a picture to go by beside the latent": (make_kontext, draw_kontext, "something lies beside it"),
    "guidance that ends": (
        make_wan,
        lambda pipe: draw_wan(pipe, [1], STEPS, callback_on_step_end=unguided),
        "mixes other branches",
    ),
    "latents that a callback edits": (
        make_wan,
        lambda pipe: draw_wan(pipe, [1], STEPS, callback_on_step_end=edited),
        "a callback or the pipeline changes it",
    ),
    "random steps": (make_random, draw_random, "DDPMScheduler draws new noise"),
    "ancestral steps": (lambda: make_random(EulerAncestralDiscreteScheduler()), draw_random, "draws new noise"),
    "two calls a step": (
        lambda: make_random(HeunDiscreteScheduler()),
        draw_random,
        "calls the denoiser 2 times a step",
    ),
    "a scheduler that rescales": (
        lambda: make_random(EulerDiscreteScheduler()),
        draw_random,
        "rescales the denoiser's",
    ),
    "two experts": (make_wan_pair, lambda pipe: draw_wan(pipe, [1], STEPS), ""),
}


@pytest.mark.parametrize("case", NOT_FOLLOWED)
def test_a_run_that_an_audit_cannot_follow_is_left_alone_and_the_report_says_so(case):
    make, draw, why = NOT_FOLLOWED[case]
    drawn = []
    for audit in (0.0, 1.0):
        torch.manual_seed(0)
        pipe = make()
        with dicache.enable(pipe, error_budget=0.5, audit=audit) as cache:
            torch.manual_seed(0)
            drawn.append(draw(pipe))
    assert torch.equal(*drawn)
    assert cache.report().to_dict()["audit"]["samples"] == 0
    told = [warning for warning in cache.report().warnings if "nothing was audited" in warning]
    assert told and all(why in warning and " or is " not in warning for warning in told)


def test_a_bare_denoiser_has_nothing_to_audit_with():
    with pytest.raises(ModeError, match="audit needs the scheduler of a pipeline"):
        dicache.enable(make_flux().transformer, error_budget=0.1, audit=0.5)


@pytest.mark.parametrize("audit", [-0.1, 1.5, True, "all"])
def test_a_share_that_is_none_is_refused(audit):
    with pytest.raises(ModeError, match="audit is"):
        dicache.enable(Captioned(), error_budget=0.1, audit=audit)
