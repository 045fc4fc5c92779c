"""What a profile knows of negative prompts: fingerprints of what the weaker branches are conditioned by."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dicache
from dicache.errors import ProfileError
from dicache.models.conditioning import SIZE, alike, fingerprint
from dicache.reference.scenes import prompts
from helpers.calibrating import LEVELS, Captioned, calibrated, made_up
from pipelines.tiny import PIPELINES


@given(rows=st.integers(1, 4), real=st.integers(1, 40), padding=st.integers(0, 8))
def test_a_fingerprint_is_of_its_sample_and_does_not_see_what_a_mask_leaves_out(rows, real, padding):
    text, others = torch.randn(rows, real, 24), torch.randn(rows, real, 24)
    padded = torch.cat([text, torch.randn(rows, padding, 24)], dim=1)
    mask = (torch.arange(real + padding) < real).expand(rows, -1)

    def told(**given):
        (print_,) = fingerprint({"hidden_states": text, "txt_ids": text[0], **given}, rows).values()
        assert print_.shape == (rows, SIZE)
        return print_

    known = told(encoder_hidden_states=text)
    assert alike(known, told(encoder_hidden_states=padded, encoder_attention_mask=mask.long())).all()
    assert alike(known, told(encoder_hidden_states=padded.bfloat16(), prompt_mask=mask)).all()
    assert alike(known, told(cap_feats=list(text))).all() and alike(known, told(more={"text_embeds": text})).all()
    assert alike(known[:1], told(encoder_hidden_states=text[:1])).all(), "one negative prompt for all"
    assert not alike(known, told(encoder_hidden_states=others)).any()
    last = torch.cat([text[:, :-1], others[:, -1:]], dim=1)
    assert real > 20 or not alike(known, told(encoder_hidden_states=last)).any()


GUIDED_PIPELINES = [name for name in PIPELINES if "guidance" in name and "variance" not in name]


@pytest.mark.parametrize("name", GUIDED_PIPELINES)
def test_weaker_branches_are_told_in_one_call_or_in_several(name):
    make = PIPELINES[name]
    with dicache.enable(pipe := make.make(), error_budget=0.1) as cache:
        make.draw(pipe, [1, 2], 4)
        together = cache.session.run.facts.negative_conditions
        make.draw(pipe, [2], 4)
        alone = cache.session.run.facts.negative_conditions
    assert together and alone.keys() == together.keys()
    for name, each in together.items():
        assert each.shape == (2, SIZE) and alike(each[1], alone[name][0]) and not alike(each[0], alone[name][0])


def test_another_negative_prompt_is_refused_where_a_promise_was_tested_with_one():
    assert not calibrated(Captioned(), levels=LEVELS[:1]).facts.negative_conditions, "every prompt had its own"
    pipe = Captioned(lambda sample: 99)
    facts = calibrated(pipe, levels=LEVELS[:1]).facts
    assert set(facts.negative_conditions) == {"0.encoder_hidden_states", "0.pooled_projections"}
    one = made_up(
        facts.model,
        scheduler=facts.scheduler,
        sigmas=facts.sigmas,
        guidance=4.0,
        negative_conditions=facts.negative_conditions,
    )
    with dicache.enable(pipe, error_budget=0.5, confidence=0.9, profile=one) as cache:
        pipe.draw([1, 2])
        assert cache.report().to_dict()["profile_fits"]
        pipe.negative = {1: 99, 2: 98}.get
        with pytest.raises(ProfileError, match=r"differs in negative prompt: .*another"):
            pipe.draw([1, 2])
    free = replace(one, facts=replace(one.facts, negative_conditions={}))
    with dicache.enable(pipe, error_budget=0.5, confidence=0.9, profile=[one, free]) as cache:
        with pytest.raises(ProfileError, match="of several profiles"):
            pipe.draw([1, 2])
        pipe.draw([2])
    assert cache.session.run.states[0].controller.profile is free
    for profiles, fits in (([one, "nearest"], False), (free, True)):
        with dicache.enable(pipe, error_budget=0.5, profile=profiles) as cache:
            pipe.draw([1, 2])
        assert cache.report().to_dict()["profile_fits"] is fits


def test_a_shipped_profile_without_a_confidence_warns_of_another_negative_prompt():
    pipe = dicache.reference.pipeline()
    pipe.set_progress_bar_config(disable=True)
    with dicache.enable(pipe, error_budget=0.2) as cache:
        for negative, fits in (("", True), ("top large red star on blue background", False)):
            with torch.no_grad():
                pipe(
                    prompts("calibration", 2, seed=4),
                    negative_prompt=negative,
                    true_cfg_scale=3.5,
                    num_inference_steps=20,
                    output_type="latent",
                )
            assert cache.report().to_dict()["profile_fits"] is fits
    assert any("another negative prompt" in warning for warning in cache.report().warnings)
