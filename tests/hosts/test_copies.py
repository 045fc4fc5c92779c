"""Copies and files of an enabled model."""

import copy
import pickle

import pytest
import torch
from diffusers import FluxTransformer2DModel

import dicache
from dicache.errors import CopyError
from dicache.models.identity import identity
from pipelines.neighbours import BUDGET, STEPS, int8_weights, quiet
from pipelines.tiny import draw_flux, make_flux


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("of", ["pipeline", "transformer", "block"])
def test_an_enabled_model_is_not_copied_and_a_disabled_one_is(of, copied):
    pipe = quiet(make_flux())
    what = {"pipeline": pipe, "transformer": pipe.transformer, "block": pipe.transformer.transformer_blocks[1]}[of]
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        with pytest.raises(CopyError, match=r"Call disable\(\) on its Cache first"):
            copied(what)
        draw_flux(pipe, [1], STEPS)
        assert cache.report().compute_speedup > 1.2
    copied(what)


def test_a_copy_of_a_disabled_model_is_its_own():
    pipe = quiet(make_flux())
    dicache.enable(pipe, error_budget=BUDGET).disable()
    other = copy.deepcopy(pipe.transformer)
    with dicache.enable(pipe, error_budget=BUDGET), dicache.enable(other, error_budget=BUDGET):
        torch.nn.init.zeros_(other.proj_out.weight)
        assert draw_flux(pipe, [1], STEPS).std() > 0.1


def test_what_an_enabled_pipeline_saves_is_what_it_is_made_of(tmp_path):
    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=BUDGET):
        draw_flux(pipe, [1], STEPS)
        pipe.transformer.save_pretrained(tmp_path)
        assert list(pipe.transformer.state_dict()) == list(make_flux().transformer.state_dict())
    again = quiet(make_flux())
    again.transformer = FluxTransformer2DModel.from_pretrained(tmp_path)
    saved, original = again.transformer.state_dict(), make_flux().transformer.state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in original.items())
    plain = draw_flux(again, [1], STEPS)  # the file's own run: another alignment of the weights gives other bits
    with dicache.enable(again, error_budget=0):
        assert torch.equal(draw_flux(again, [1], STEPS), plain)


def test_quantised_weights_have_an_identity_of_their_own():
    one, same, other = make_flux(), make_flux(), make_flux()
    int8_weights(one), int8_weights(same)
    assert identity(one.transformer) == identity(same.transformer) != identity(other.transformer)
