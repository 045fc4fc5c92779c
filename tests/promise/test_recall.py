"""Runs of one batch share what they have in common, and nothing that is measured is another for it."""

import numpy as np
import pytest
import torch

from dicache.measuring.calibrate import calibrate
from dicache.tensors import recall as recalling
from dicache.tensors.recall import Recall
from helpers.calibrating import GUIDED, LEVELS, PROMPTS, STEPS, Captioned, calibrated
from helpers.watching import count_macs


def test_what_is_measured_is_the_same_without_and_executes_more(monkeypatch):
    shared = calibrated(Captioned())
    monkeypatch.setattr(recalling, "LARGEST", 0)  # nothing is remembered
    apart = calibrated(Captioned())
    np.testing.assert_array_equal(shared.arrays["work"], apart.arrays["work"])
    for key in ("estimate", "loss.latent"):
        np.testing.assert_allclose(shared.arrays[key], apart.arrays[key], rtol=1e-4)
    costs = [profile.about["cost"] for profile in (shared, apart)]
    assert costs[0]["macs"] < 0.9 * costs[1]["macs"] and costs[0]["uncached macs"] == costs[1]["uncached macs"]
    work = 1 + float(apart.arrays["work"].mean(0).sum())
    assert costs[1]["macs"] / costs[1]["uncached macs"] * (1 + len(LEVELS)) == pytest.approx(work, rel=0.01)


def test_a_level_that_takes_the_way_of_one_before_executes_nothing():
    pipe, like = Captioned(), {"steps": STEPS, "batch": 4, "call": GUIDED, "progress": False}
    macs = count_macs(pipe.transformer)
    try:
        once = calibrate(pipe, PROMPTS, levels=(0.2,), **like)
        first = sum(macs)
        macs.clear()
        both = calibrate(pipe, PROMPTS, levels=(0.2, 0.2001), **like)
    finally:
        del pipe.transformer.forward
    assert both.about["cost"]["macs"] == pytest.approx(once.about["cost"]["macs"], rel=0.05)
    assert sum(macs) < first * 1.1, "what is around the blocks runs all the same"
    np.testing.assert_array_equal(both.arrays["work"][:, 0], both.arrays["work"][:, 1])
    np.testing.assert_allclose(both.arrays["loss.latent"][:, 0], both.arrays["loss.latent"][:, 1], rtol=1e-5)


def test_one_bit_of_the_latent_is_another_latent_and_rows_and_steps_are_told_apart():
    recall, latent = Recall(), torch.randn(2, 3, 4)
    assert not recall.recalled((0, "a"), latent, None).any()
    recall.complete(latent + 1)
    assert recall.recalled((0, "a"), latent, None).all() and not recall.recalled((1, "a"), latent, None).any()
    assert (
        not recall.recalled((0, "b"), latent, None).any() and not recall.recalled((0, "a"), latent.flip(0), None).any()
    )
    other = latent.clone()
    other[1, 2, 3] = torch.nextafter(other[1, 2, 3], torch.tensor(9.0))
    assert recall.recalled((0, "a"), other, None).tolist() == [True, False]
    assert recall.recalled((0, "a"), latent, torch.tensor([False, True])).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_output_is_given_back_to_the_bit_and_a_copy_learns_for_itself(dtype):
    recall, latent, output = Recall(), torch.randn(3, 5, dtype=dtype), torch.randn(3, 5, dtype=dtype)
    recall.recalled(0, latent, torch.tensor([True, False, True]))
    recall.complete(output)
    copy = recall.copy()
    copy.recalled(0, latent, None)
    given = copy.complete(torch.zeros_like(output))
    assert torch.equal(given[[0, 2]], output[[0, 2]]) and not given[1].any()
    assert recall.recalled(0, latent, None).tolist() == [True, False, True]
    assert copy.recalled(0, latent, None).all()


def test_a_call_that_did_not_ask_gets_nothing_of_the_one_before():
    recall, latent = Recall(), torch.randn(2, 3)
    for _ in range(2):
        recall.recalled(0, latent, None)
        recall.complete(latent)
    other = torch.randn(2, 3)
    assert torch.equal(recall.complete(other), other)


def test_what_was_spared_is_told_per_sample():
    recall, latent = Recall(), torch.randn(4, 2)
    recall.recalled(0, latent, torch.tensor([True, False, True, False]))
    recall.complete(latent)
    recall.recalled(0, latent, None)
    recall.spare(10.0)
    recall.spare(1.0)
    assert recall.spared_of(2).tolist() == [22.0, 0.0]
    recall.begin_run()
    assert not recall.spared.numel()
