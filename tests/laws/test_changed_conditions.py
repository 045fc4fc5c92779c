"""Prompts and controls that change half-way end the gap, and what only seems to change ends none."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

import dicache
from dicache.errors import ProfileError
from dicache.presets import fora
from dicache.promise.metrics import relative_error
from dicache.types import REASONS, Reason
from helpers.fuzzing import examples
from pipelines.neighbours import quiet
from pipelines.table import PIPELINES, Made

STEPS = 12
BUDGET = 0.1
CHANGED = "the conditions were changed half-way"
SWITCHED = ("FLUX.1", "FLUX.1 guided", "SD3", "PixArt", "SD 1.5", "Wan 2.1", "Sana")
"""Guidance off, sequential and batched; one that joins its prompts anew at every step."""
CONTROLLED = ("FLUX.1 ControlNet", "SD3 ControlNet", "SD 1.5 ControlNet", "Qwen-Image ControlNet")
WATCHED = (*SWITCHED, *CONTROLLED, "FLUX.2", "Z-Image", "HiDream", "LTX 2", "Lumina 2", "Wan 2.2, two experts")


def made(name: str) -> Made:
    return Made(name, PIPELINES[name], quiet(PIPELINES[name].make()))


def switching(one: Made, after: float):
    """Every prompt is another from this share of the run on, before anyone else hears of it; ended by its handle."""
    latest: list[float] = []

    def other(module, args, kwargs):
        name = next(name for name in one.family.time if name in kwargs) if len(args) < 2 else ""
        time = float(torch.as_tensor(kwargs[name] if name else args[1]).flatten()[0])
        if not latest or latest[-1] != time:
            latest.append(time)
        if len(latest) > after * STEPS:
            kwargs["encoder_hidden_states"] = kwargs["encoder_hidden_states"].flip(1) * 1.5
        return args, kwargs

    return one.denoiser.register_forward_pre_hook(other, prepend=True, with_kwargs=True)


def drawn(one: Made, after: float):
    handle = switching(one, after)
    try:
        return one.tiny.draw(one.pipe, [1, 2], STEPS)
    finally:
        handle.remove()


def alarms(cache: dicache.Cache) -> list[str]:
    return [warning for warning in cache.report().warnings if "half-way" in warning]


@pytest.mark.parametrize("name", SWITCHED)
@given(after=st.floats(0.2, 0.9))
@examples(2)
def test_a_prompt_that_changes_half_way_is_followed_and_said(name, after):
    one = made(name)
    plain = drawn(one, after)
    with dicache.enable(one.pipe, error_budget=BUDGET) as cache:
        cached = drawn(one, after)
        assert alarms(cache) == [f"{CHANGED} (encoder_hidden_states): the cache began anew there."]
    assert float(relative_error(cached, plain).max()) <= 2 * BUDGET, "an estimate is off by twice at most"


@pytest.mark.parametrize("name", SWITCHED)
@given(change=st.integers(2, STEPS - 1), interval=st.integers(2, 5))
@examples(2)
def test_whatever_rule_decides_the_step_computes_and_nothing_older_is_used(name, change, interval):
    one = made(name)
    with dicache.enable(one.pipe, config=fora(interval)) as cache:
        drawn(one, change / STEPS)
        (record,) = [each for each in cache.trace.records if bool((each.reason == Reason.CHANGED).any())]
        assert record.index == change and bool((record.action == 0).all())
        assert len(alarms(cache)) == 1
        usual = [each.reason for each in cache.trace.records[:change]]
    assert not any(bool((reason == Reason.CHANGED).any()) for reason in usual) and Reason.CHANGED in REASONS


@pytest.mark.parametrize("name", WATCHED)
def test_nothing_is_said_of_runs_whose_conditions_stay_or_move_at_every_step(name):
    one = made(name)
    for budget in (BUDGET, 2.0):
        with dicache.enable(one.pipe, error_budget=budget) as cache:
            one.tiny.draw(one.pipe, [1, 2], STEPS)
        assert alarms(cache) == []


@pytest.mark.parametrize("name", CONTROLLED)
@pytest.mark.parametrize("window", [{"control_guidance_end": 0.5}, {"control_guidance_start": 0.5}], ids=str)
def test_a_control_that_begins_or_ends_half_way_is_a_change_and_its_movement_is_none(name, window):
    one = made(name)
    with dicache.enable(one.pipe, error_budget=2.0) as cache:
        one.tiny.draw(one.pipe, [1, 2], STEPS, **window)
        (alarm,) = alarms(cache)
    assert alarm.startswith(CHANGED) and ("control" in alarm or "residual" in alarm)


@pytest.mark.parametrize("name", ["SD3", "CogView 4"])
@given(change=st.integers(2, STEPS - 3), scale=st.sampled_from([1.5, 12.0]))
@examples(2)
def test_a_guidance_scale_that_changes_half_way_is_measured_again_and_said(name, change, scale):
    def steer(pipe, index, timestep, given):
        pipe._guidance_scale = scale if index + 1 >= change else pipe._guidance_scale
        return {}

    one = made(name)
    one.pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with dicache.enable(one.pipe, error_budget=0) as cache:
        one.tiny.draw(one.pipe, [1, 2], STEPS, callback_on_step_end=steer)
        assert alarms(cache) == ["the guidance scale was changed half-way: its branches were weighed anew there."]
        assert cache.session.run.guided.strength.tolist() == pytest.approx([scale] * 2, rel=0.02)
        one.tiny.draw(one.pipe, [1, 2], STEPS)
        assert cache.session.run.guided.strength.tolist() != pytest.approx([scale] * 2, rel=0.02)


def test_a_promise_ends_where_the_prompt_changes(reference):
    def switch(pipe, index, timestep, given):
        return {"prompt_embeds": given["prompt_embeds"].flip(1)} if index == 9 else {}

    call = {"num_inference_steps": 20, "negative_prompt": "", "true_cfg_scale": 3.5, "output_type": "latent"}
    switched = {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    caption = "center large red circle on white background"
    with dicache.enable(reference, error_budget=0.05, confidence=0.9) as cache:
        with pytest.raises(ProfileError, match=f"{CHANGED} .encoder_hidden_states."):
            reference(caption, **call, **switched)
        reference(caption, **call)
        assert alarms(cache) == [] or "promised" in " ".join(cache.report().warnings)
