"""Weights that are changed under dicache are noticed, and whatever only moves them is not taken for a change."""

import copy

import pytest
import torch
from diffusers import FluxPipeline

import dicache
from dicache.errors import ProfileError
from dicache.models.weights import Weights
from helpers.watching import strips
from pipelines.neighbours import (
    BUDGET,
    FLUX,
    NEIGHBOURS,
    ORDERS,
    STEPS,
    draw,
    int8_weights,
    layerwise_casting,
    quiet,
    sequential_offload,
)
from pipelines.tiny import PIPELINES, draw_flux, make_flux

AFTER_WHICH_THEY_ARE_OTHERS = (int8_weights, layerwise_casting)


def _written(model):
    model.proj_out.weight.mul_(1.1)


def _written_in_one_place(model):
    model.x_embedder.weight[0, 0] = 1.0


def _exchanged(model):
    model.proj_out.weight = torch.nn.Parameter(model.proj_out.weight * 1.1)


def _another_module(model):
    model.norm_out.linear = copy.deepcopy(model.norm_out.linear)


CHANGES = {
    "written": _written,
    "written in one place": _written_in_one_place,
    "loaded": lambda model: model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}),
    "loaded by assignment": lambda model: model.load_state_dict(
        {k: 2 * v for k, v in model.state_dict().items()}, assign=True
    ),
    "exchanged": _exchanged,
    "another module": _another_module,
    "cast": lambda model: model.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_weights_that_are_changed_are_noticed_once_and_remembered(change):
    model = make_flux().transformer
    weights = Weights(model)
    assert not weights.changed() and weights.as_at_first
    change(model)
    assert weights.changed()
    assert not weights.changed() and not weights.as_at_first


@pytest.mark.parametrize("change", ["written in one place", "loaded"])
def test_a_run_whose_weights_are_written_to_half_way_begins_anew_and_says_so(change):
    def write(pipe, index, timestep, kwargs):
        if index == STEPS:
            CHANGES[change](pipe.transformer)
        return {}

    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_flux(pipe, [1], 2 * STEPS, callback_on_step_end=write)
        (strip,) = strips(cache)
    assert any("the weights were changed half-way" in warning for warning in cache.report().warnings)
    assert len(strip) == STEPS - 1 and strip.startswith("##")


def test_a_write_within_a_gap_ends_it():
    def write(pipe, index, timestep, kwargs):
        if index == at:
            CHANGES["written"](pipe.transformer)
        return {}

    at, pipe = None, quiet(make_flux())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_flux(pipe, [1], 2 * STEPS)
        (strip,) = strips(cache)
        gap = next(step for step in range(1, 2 * STEPS - 1) if strip[step] != "#" != strip[step + 1])
        at = gap  # the callback comes after the step
        draw_flux(pipe, [1], 2 * STEPS, callback_on_step_end=write)
    assert strips(cache)[0].startswith("#") and len(strips(cache)[0]) == 2 * STEPS - 1 - gap


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [FLUX])
def test_what_moves_weights_or_adds_to_them_is_no_change_of_theirs(name, neighbour, order):
    tiny = PIPELINES[name]
    pipe = tiny.make()
    if order == "before dicache" or neighbour in AFTER_WHICH_THEY_ARE_OTHERS:
        neighbour(pipe)
    weights = Weights(pipe.transformer)
    if order == "after dicache" and neighbour not in AFTER_WHICH_THEY_ARE_OTHERS:
        neighbour(pipe)
    changed = []
    pipe.transformer.register_forward_pre_hook(lambda *_: changed.append(weights.changed()))
    for sample in (1, 2):
        draw(tiny, pipe, sample)
    if neighbour is not sequential_offload:
        pipe.transformer.to("cpu")
    assert changed and not any(changed) and not weights.changed() and weights.as_at_first


def test_weights_that_come_back_from_sequential_offload_and_inference_tensors_raise_no_alarm():
    pipe = quiet(make_flux())
    weights = Weights(pipe.transformer)
    sequential_offload(pipe)
    assert not weights.changed()
    pipe.remove_all_hooks()
    assert not weights.changed()
    with torch.inference_mode():
        made = make_flux()
    assert not Weights(made.transformer).changed()


@pytest.mark.parametrize("change", ["written", "exchanged"])
@torch.no_grad()
def test_a_promise_is_refused_after_the_weights_were_changed_and_made_again_by_enable(reference, change):
    pipe = quiet(FluxPipeline(**{**reference.components, "transformer": copy.deepcopy(reference.transformer)}))
    pipe.default_sample_size = reference.default_sample_size  # 64 times as many tokens otherwise
    call = {"num_inference_steps": 20, "negative_prompt": "", "true_cfg_scale": 3.5, "output_type": "latent"}
    caption, before = "center large red circle on white background", pipe.transformer.proj_out.weight.clone()
    with dicache.enable(pipe, error_budget=0.05, confidence=0.9) as cache:
        pipe(caption, **call)
        assert any("promised with confidence" in warning for warning in cache.report().warnings)
        CHANGES[change](pipe.transformer)
        for _ in range(2):
            with pytest.raises(ProfileError, match=r"weights were changed after dicache\.enable"):
                pipe(caption, **call)
    pipe.transformer.proj_out.weight.copy_(before)
    with dicache.enable(pipe, error_budget=0.05, confidence=0.9):
        pipe(caption, **call)
