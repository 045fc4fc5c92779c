"""LoRA through a life: loaded, scaled, fused, switched off and unloaded under dicache, between runs and half-way."""

import copy
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from peft import LoraConfig

import dicache
from dicache.errors import ProfileError
from dicache.models.identity import identity
from helpers.watching import count_macs, strips
from pipelines.neighbours import BUDGET, FLUX, STEPS, WAN, draw, lora, lora_layers, quiet, traces
from pipelines.tiny import PIPELINES, draw_flux, make_flux


def scaled(pipe: Any, scale: float) -> None:
    for layer in lora_layers(pipe.transformer):
        layer.set_scale("default", scale)


def merged(pipe: Any) -> None:
    for layer in lora_layers(pipe.transformer):
        layer.merge()


LIVES = {
    "loaded": lora,
    "loaded around the blocks too": lambda pipe: lora(pipe, "to_q", "x_embedder", "proj_out", "patch_embedding"),
    "loaded and scaled": lambda pipe: (lora(pipe), scaled(pipe, 0.3)),
    "loaded and fused": lambda pipe: (lora(pipe), merged(pipe)),
    "loaded and switched off": lambda pipe: (lora(pipe), pipe.transformer.disable_lora()),
    "loaded and unloaded": lambda pipe: (lora(pipe), pipe.transformer.unload_lora()),
}


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
@pytest.mark.parametrize("name", [FLUX, WAN])
def test_after_a_lora_changed_between_generations_a_run_is_that_of_a_fresh_cache_and_counts_what_runs(name, life):
    tiny = PIPELINES[name]
    fresh_pipe = tiny.make()
    life(fresh_pipe)
    with dicache.enable(fresh_pipe, error_budget=BUDGET) as fresh_cache:
        fresh, fresh_strips = draw(tiny, fresh_pipe, 1), strips(fresh_cache)
    pipe = tiny.make()
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw(tiny, pipe, 1)
        life(pipe)
        assert torch.equal(draw(tiny, pipe, 1), fresh) and strips(cache) == fresh_strips
        macs = count_macs(pipe.transformer)
        draw(tiny, pipe, 1)
        assert cache.trace.executed.sum().item() == pytest.approx(sum(macs), rel=1e-6)
        del pipe.transformer.forward
    assert not any("half-way" in warning for warning in cache.report().warnings)


def test_a_lora_from_a_file_is_loaded_scaled_fused_and_unloaded_by_the_pipeline(tmp_path):
    source = make_flux()
    source.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    from peft import get_peft_model_state_dict

    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(source.transformer))

    def life(pipe: Any) -> list[torch.Tensor]:
        """Five generations: without, with, at half the scale, fused, without again."""
        drawn = [draw_flux(quiet(pipe), [1], STEPS)]
        pipe.load_lora_weights(tmp_path, adapter_name="style")
        drawn.append(draw_flux(pipe, [1], STEPS))
        pipe.set_adapters(["style"], [0.5])
        drawn.append(draw_flux(pipe, [1], STEPS))
        pipe.fuse_lora()
        drawn.append(draw_flux(pipe, [1], STEPS))
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
        return [*drawn, draw_flux(pipe, [1], STEPS)]

    plain, pipe = life(make_flux()), make_flux()
    untouched = traces(pipe.transformer)
    with dicache.enable(pipe, error_budget=0.0):
        assert all(map(torch.equal, life(pipe), plain))
    assert {**traces(pipe.transformer), "": []} == {**untouched, "": []}
    assert (plain[1] - plain[0]).norm() > 0.01 * plain[0].norm(), "the LoRA does something"
    pipe = make_flux()
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        drawn = life(pipe)
        assert cache.report().compute_speedup > 1.2
    assert max((x - exact).norm() / exact.norm() for x, exact in zip(drawn, plain, strict=True)) < BUDGET


@pytest.mark.parametrize("change", ["scaled", "fused", "loaded", "scaled for the call"])
def test_a_lora_that_changes_half_way_begins_anew_and_says_so(change):
    def switch(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index != STEPS:
            return {}
        if change == "scaled":
            scaled(pipe, 0.1)
        elif change == "fused":
            merged(pipe)
        elif change == "loaded":
            lora(pipe)
        else:
            pipe._joint_attention_kwargs = {"scale": 0.1}
        return {}

    def make() -> Any:
        pipe = quiet(make_flux())
        if change != "loaded":
            lora(pipe)
        return pipe

    plain = draw_flux(make(), [1], 2 * STEPS, callback_on_step_end=switch)
    pipe = make()
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        drawn = draw_flux(pipe, [1], 2 * STEPS, callback_on_step_end=switch)
        (strip,) = strips(cache)
    assert (drawn - plain).norm() / plain.norm() < BUDGET
    assert any("LoRA was changed half-way" in warning for warning in cache.report().warnings)
    assert len(strip) == STEPS - 1 and strip.startswith("##"), "nothing older than the change is used"


def test_a_scale_that_is_set_for_each_call_alone_is_no_change():
    pipe = quiet(make_flux())
    lora(pipe)
    scaled(pipe, 0.7)
    (before,) = {layer.scaling["default"] for layer in lora_layers(pipe.transformer)}
    assert before * 0.8 / 0.8 != before, "undoing it rounds"
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_flux(pipe, [1], STEPS, joint_attention_kwargs={"scale": 0.8})
    assert len(strips(cache)[0]) == STEPS and cache.report().compute_speedup > 1.2


def test_a_promise_is_refused_after_the_lora_changed(reference):
    pipe = FluxPipeline(**{**reference.components, "transformer": copy.deepcopy(reference.transformer)})
    assert identity(pipe.transformer) == identity(reference.transformer)
    with dicache.enable(pipe, error_budget=0.05, confidence=0.9):
        lora(pipe)
        for _ in range(2):
            with torch.no_grad(), pytest.raises(ProfileError, match="LoRA was changed after"):
                pipe.transformer(torch.zeros(1, 4, 4), timestep=torch.ones(1))
