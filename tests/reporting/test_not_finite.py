"""Samples that are not finite: named, and nothing else is said of them. Their mates are as without them."""

import json
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import dicache
from helpers.fuzzing import examples
from pipelines.neighbours import quiet
from pipelines.tiny import PIPELINES, draw_flux, make_flux

STEPS = 8
BATCHED = "two streams, batched guidance (sd3)"
GUIDED = "sequential guidance with named branches (flux)"
CONFIGS: dict[str, Any] = {
    "budget": {"error_budget": 0.5},
    "speed-up": {"speedup": 2.0},
    "sites inside": {"config": dicache.presets.gradient_optimized_cache()},
    "nothing measured at the end": {"config": dicache.presets.fora(3)},
}


def poisoned(at: int | None, sample: int, value: float) -> dict[str, Any]:
    """Callbacks that make one sample's latent worthless after a step."""

    def spoil(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == at:
            tensors["latents"][sample].flatten()[3] = value
        return tensors

    return {"callback_on_step_end": spoil}


@pytest.fixture(scope="module", params=[GUIDED, BATCHED])
def tiny(request) -> tuple[Any, Any]:
    return PIPELINES[request.param], quiet(PIPELINES[request.param].make())


@example(at=0, sample=1, value=float("nan"), name="budget")
@examples(1)
@given(
    at=st.integers(0, STEPS - 2),
    sample=st.integers(0, 2),
    value=st.sampled_from([float("nan"), float("inf")]),
    name=st.sampled_from(list(CONFIGS)),
)
def test_a_sample_that_is_not_finite_is_named_from_its_step_on_and_its_mates_are_as_without(
    tiny, at, sample, value, name
):
    kind, pipe = tiny
    told, drawn = [], []
    for spoiled in (None, at):
        with dicache.enable(pipe, **CONFIGS[name]) as cache:
            drawn.append(kind.draw(pipe, [1, 2, 3], STEPS, **poisoned(spoiled, sample, value)))
        told.append(cache.report().to_dict())
        json.dumps(told[-1], allow_nan=False)
    usual, spoiled_run = (facts["samples"] for facts in told)
    mates = [i for i in range(3) if i != sample]
    assert f"sample {sample} is not finite from step {at + 1} on: nothing is said of it." in told[1]["warnings"]
    assert (
        not any("not finite" in note for note in told[0]["warnings"]) and spoiled_run[sample]["estimated_error"] is None
    )
    for i in mates:
        assert spoiled_run[i]["actions"] == usual[i]["actions"]
        assert spoiled_run[i]["estimated_error"] == pytest.approx(usual[i]["estimated_error"], rel=1e-3, abs=1e-9)
    torch.testing.assert_close(drawn[1][mates], drawn[0][mates], rtol=1e-3, atol=1e-4)


def test_what_is_not_finite_at_the_end_alone_is_named_too():
    pipe = quiet(make_flux())
    calls = []

    def spoil(module: Any, args: Any, output: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == STEPS:
            output[0][1] = torch.nan
        return output

    handle = pipe.transformer.proj_out.register_forward_hook(lambda m, a, out: spoil(m, a, [out])[0])
    with dicache.enable(pipe, error_budget=0.0) as cache:
        draw_flux(pipe, [1, 2], STEPS)
    handle.remove()
    assert f"sample 1 is not finite from step {STEPS - 1} on: nothing is said of it." in cache.report().warnings
    assert [sample["estimated_error"] for sample in cache.report().to_dict()["samples"]] == [0.0, None]


def test_nothing_is_promised_where_no_sample_is_finite_and_a_promise_stays_with_the_others(reference):
    call = {"negative_prompt": "", "true_cfg_scale": 3.5, "num_inference_steps": 20, "output_type": "latent"}
    for spoiled, promised in (([1], True), ([0, 1], False)):

        def spoil(pipe: Any, step: int, time: Any, tensors: dict[str, Any], spoiled: Any = spoiled) -> dict[str, Any]:
            if step == 4:
                tensors["latents"][spoiled] = torch.nan
            return tensors

        with dicache.enable(reference, error_budget=0.05, confidence=0.9) as cache:
            reference(dicache.reference.prompts("test", 2), callback_on_step_end=spoil, **call)
        warnings = cache.report().warnings
        assert any(note.startswith("promised") for note in warnings) == promised
        assert [note for note in warnings if "not finite" in note] == [
            f"sample {i} is not finite from step 5 on: nothing is said of it." for i in spoiled
        ]


def test_audits_count_no_sample_that_is_not_finite_and_the_report_stays_json():
    pipe = quiet(make_flux())
    with dicache.enable(pipe, error_budget=0.4, audit=1.0) as cache:
        draw_flux(pipe, [1, 2], STEPS, **poisoned(3, 1, float("nan")))
    facts = cache.report().to_dict()
    json.dumps(facts, allow_nan=False)
    assert facts["samples"][1]["true_error"] is None and all(e >= 0 for e in facts["audit"]["errors"])
