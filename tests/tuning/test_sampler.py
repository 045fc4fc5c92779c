"""A loop of one's own in the shape of a pipeline: it draws what the loop draws, under a cache, a profile, a schedule
and in workers, and leaves the scheduler as it was.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import dicache
from dicache.errors import ProfileError, ScheduleError, UnsupportedModelError
from pipelines.exact import SHAPE, ExactDenoiser, pictures
from pipelines.loops import ddim, sampled

STEPS, NAMES = 12, [str(k) for k in range(12)]


def seeds(count):
    return [torch.Generator().manual_seed(k) for k in range(count)]


@pytest.fixture
def sampler():
    return dicache.Sampler(ExactDenoiser(pictures()), ddim(), sampled)


def test_it_draws_what_the_loop_draws_and_tells_every_step(sampler):
    told = []
    (latents,) = sampler(
        NAMES[:3],
        num_inference_steps=STEPS,
        generator=seeds(3),
        callback_on_step_end=lambda pipe, i, time, kwargs: told.append((pipe, i, kwargs["latents"])),
    )
    assert torch.equal(latents, sampled(ExactDenoiser(pictures()), ddim(), NAMES[:3], STEPS, seeds(3)))
    assert [(pipe, i) for pipe, i, _ in told] == [(sampler, i) for i in range(STEPS)]
    assert torch.equal(told[-1][2], latents) and "step" not in vars(sampler.scheduler)
    assert torch.equal(sampler(NAMES[:3], STEPS, seeds(3))[0], latents)
    assert torch.equal(sampler(NAMES[:2])[0], sampler(NAMES[:2], generator=seeds(2))[0]), (
        "seeds 0, 1 where none is given"
    )


def test_further_arguments_reach_the_loop_and_pictures_are_decoded(sampler):
    (louder,) = sampler(NAMES[:2], STEPS, seeds(2), scale=2.0)
    assert not torch.equal(louder, sampler(NAMES[:2], STEPS, seeds(2))[0])
    with pytest.raises(UnsupportedModelError, match="has no decode"):
        sampler(NAMES[:2], STEPS, seeds(2), output_type="pt")
    decoding = dicache.Sampler(sampler.transformer, sampler.scheduler, sampled, decode=lambda latents: latents[:, :3])
    assert decoding(NAMES[:2], STEPS, seeds(2), output_type="pt")[0].shape == (2, 3, 8, 8)


def test_a_cache_looks_ahead_in_it_and_leaves_it_as_it_was(sampler):
    plain = sampler(NAMES[:4], 28, seeds(4))[0]
    with dicache.enable(sampler, error_budget=0.05) as cache:
        cached = sampler(NAMES[:4], 28, seeds(4))[0]
    report = cache.report()
    assert report.compute_speedup > 1.5 and not torch.equal(cached, plain)
    assert ((cached - plain).flatten(1).norm(dim=1) < 0.1 * plain.flatten(1).norm(dim=1)).all()
    with dicache.enable(sampler, error_budget=0.0):
        assert torch.equal(sampler(NAMES[:4], 28, seeds(4))[0], plain)
    assert torch.equal(sampler(NAMES[:4], 28, seeds(4))[0], plain)


def test_a_loop_is_calibrated_and_keeps_what_is_promised(sampler):
    profile = dicache.calibrate(sampler, NAMES, steps=STEPS, levels=(0.05, 0.2), progress=False)
    assert profile.prompts == len(NAMES)
    with dicache.enable(sampler, error_budget=0.5, confidence=0.8, profile=profile) as cache:
        sampler(NAMES[:2], STEPS, seeds(2))
    assert cache.report().to_dict()["confidence"] == 0.8
    with dicache.enable(sampler, error_budget=0.5, confidence=0.8, profile=profile), pytest.raises(ProfileError):
        sampler(NAMES[:2], STEPS + 1, seeds(2))


def test_a_loop_is_audited_beside_its_own_scheduler():
    """The audit steps copies of a scheduler that counts its steps, while the sampler listens to it."""

    def flow(denoiser, scheduler, prompts, steps, generators):
        latents = torch.stack([torch.randn(*SHAPE, generator=generator) for generator in generators])
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
        for time, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            denoiser.level, denoiser.mixture = (1 - float(sigma), float(sigma)), (-1.0, 1.0)
            latents = scheduler.step(denoiser(latents, time.expand(len(latents))), time, latents).prev_sample
        return latents

    sampler = dicache.Sampler(ExactDenoiser(pictures()), FlowMatchEulerDiscreteScheduler(), flow)
    plain = sampler(NAMES[:3], 20, seeds(3))[0].flatten(1)
    with dicache.enable(sampler, error_budget=0.1, audit=1.0) as cache:
        away = (sampler(NAMES[:3], 20, seeds(3))[0].flatten(1) - plain).norm(dim=1) / plain.norm(dim=1)
    assert cache.report().to_dict()["audit"]["errors"] == pytest.approx(away.tolist(), rel=1e-3)


@pytest.mark.parametrize("steps", [2, 3])
def test_a_run_of_few_steps_is_told_from_others(sampler, steps):
    """All their half log signal-to-noise lie below 0."""
    schedule = dicache.Schedule.from_letters(sampler, "#" * steps, NAMES[:2])
    with dicache.enable(sampler, schedule=schedule) as cache:
        sampler(NAMES[:2], steps, seeds(2))
        assert cache.report().compute_speedup == 1
        with pytest.raises(ScheduleError, match=f"found at {steps}|made at {steps}"):
            sampler(NAMES[:2], steps + 1, seeds(2))


def test_workers_draw_with_copies_of_their_own(sampler):
    options = {"steps": STEPS, "levels": (0.05, 0.2), "batch": 4, "progress": False}
    here = dicache.calibrate(sampler, NAMES, **options)
    with ThreadPoolExecutor(2) as threads:
        there = dicache.calibrate(sampler, NAMES, **options, executor=threads)
    assert all(np.array_equal(here.arrays[name], there.arrays[name]) for name in here.arrays)
    twin = copy.deepcopy(sampler)
    assert twin.transformer is not sampler.transformer and twin.scheduler is not sampler.scheduler
    assert torch.equal(twin(NAMES[:2], STEPS, seeds(2))[0], sampler(NAMES[:2], STEPS, seeds(2))[0])


def test_a_loop_that_fails_leaves_the_scheduler_as_it_was(sampler):
    def failing(denoiser, scheduler, prompts, steps, generators):
        sampled(denoiser, scheduler, prompts, steps, generators)
        raise KeyboardInterrupt

    broken = dicache.Sampler(sampler.transformer, sampler.scheduler, failing)
    with pytest.raises(KeyboardInterrupt):
        broken(NAMES[:1], STEPS, seeds(1))
    assert "step" not in vars(sampler.scheduler)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda net: (net.forward, ddim(), sampled), "Expected the denoiser, a torch module"),
        (lambda net: (net, None, sampled), "the diffusers scheduler that the loop steps"),
        (lambda net: (net, ddim(), None), "draw is a NoneType. Expected a function"),
    ],
)
def test_what_is_no_sampler_is_refused(parts, message):
    with pytest.raises(UnsupportedModelError, match=message):
        dicache.Sampler(*parts(ExactDenoiser(pictures())))


@pytest.mark.parametrize(
    ("draw", "what"),
    [(lambda *args: None, "gave NoneType for 2 prompts"), (lambda *args: torch.zeros(3, 4), r"gave \(3, 4\) for 2")],
)
def test_a_loop_that_gives_something_else_is_refused(sampler, draw, what):
    with pytest.raises(UnsupportedModelError, match=what):
        dicache.Sampler(sampler.transformer, sampler.scheduler, draw)(NAMES[:2], STEPS, seeds(2))
