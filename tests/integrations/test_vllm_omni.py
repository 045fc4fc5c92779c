"""vLLM-Omni's stepwise serving: a stand-in of its runner, which lays requests upon each other, and of what it keeps."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dicache
from dicache.errors import BudgetError, PipelineError
from dicache.integrations import OmniSlots
from helpers.requesting import flux_inputs
from helpers.watching import count_macs
from pipelines.tiny import embeds, make_flux

SCALE = 3.0


class Pipeline(nn.Module):
    """What a pipeline does in a step: one transformer call for a branch, or both branches in one."""

    def __init__(self, branches: str) -> None:
        super().__init__()
        flux = make_flux()
        self.transformer, self.scheduler, self.branches = flux.transformer, flux.scheduler, branches
        self.shared = {name: flux_inputs(flux, 1)[name] for name in ("txt_ids", "img_ids")}

    def prepare_encode(self, state: Any) -> None:
        samples, steps = state.samples, state.sampling.num_inference_steps
        noises = [torch.Generator().manual_seed(sample) for sample in samples]
        state.latents = torch.cat([torch.randn(1, 256, 4, generator=noise) for noise in noises])
        state.prompt_embeds = [embeds(samples, 8, 32, salt=salt) for salt in (1, 3)]
        state.pooled = [embeds(samples, 32, salt=salt) for salt in (2, 4)]
        state.scheduler = copy.deepcopy(self.scheduler)
        state.scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist())
        state.scheduler.set_begin_index(0)
        state.timesteps = state.scheduler.timesteps

    def denoise_step(self, states: list[Any]) -> Tensor:
        latents = torch.cat([state.latents for state in states])
        rows = [state.timesteps[state.step_index].expand(len(state.latents)) for state in states]
        times = torch.cat(rows) / 1000
        texts, pooled = ([torch.cat([vars(s)[name][b] for s in states]) for b in (0, 1)] for name in NAMES)
        if self.branches == "none":
            return self._called(latents, texts[0], pooled[0], times)
        if self.branches == "in one":
            both = self._called(*(torch.cat(each) for each in ([latents] * 2, texts, pooled, [times] * 2)))
            outputs = both.chunk(2)
        else:
            outputs = [self._called(latents, texts[b], pooled[b], times) for b in (0, 1)]
        return outputs[1] + SCALE * (outputs[0] - outputs[1])

    def _called(self, latents: Tensor, text: Tensor, pooled: Tensor, times: Tensor) -> Tensor:
        call = {"encoder_hidden_states": text, "pooled_projections": pooled, "timestep": times, **self.shared}
        return self.transformer(latents, **call, return_dict=False)[0]

    def step_scheduler(self, state: Any, noise: Tensor) -> None:
        time = state.timesteps[state.step_index]
        state.latents = state.scheduler.step(noise, time, state.latents, return_dict=False)[0]
        state.step_index += 1


NAMES = ("prompt_embeds", "pooled")


def request(sample: int, steps: int, *more: int, **asked: Any) -> Any:
    sampling = SimpleNamespace(num_inference_steps=steps, extra_args={"dicache": asked} if asked else None)
    name = f"request {sample}"
    return SimpleNamespace(
        request_id=name, sampling=sampling, samples=[sample, *more], step_index=0, cache_slot=None, scheduler=None
    )


@torch.no_grad()
def served(pipeline: Pipeline, manager: OmniSlots | None, states: list[Any], starts: list[int]) -> list[str]:
    """Each from its own tick on; the decisions of each."""
    told, tick = dict[str, str](), 0
    while len(told) < len(states):
        active = [s for s, start in zip(states, starts, strict=True) if start <= tick and s.request_id not in told]
        for state in active:
            if state.scheduler is None:
                pipeline.prepare_encode(state)
        if active:
            advance(pipeline, manager, active)
        for state in active:
            if state.step_index == len(state.timesteps):
                told[state.request_id] = "" if manager is None else ended(manager, state)
        tick += 1
    return [told[state.request_id] for state in states]


def advance(pipeline: Pipeline, manager: OmniSlots | None, active: list[Any]) -> None:
    if manager is not None:
        manager.activate(active)
    try:
        noise = pipeline.denoise_step(active)
    finally:
        if manager is not None:
            manager.deactivate(active)
    for state, own in zip(active, noise.split([len(s.latents) for s in active]), strict=True):
        pipeline.step_scheduler(state, own)


def ended(manager: OmniSlots, state: Any) -> str:
    report = manager.report(state)
    assert report is not None
    assert 0 < state.cache_slot.resident_bytes < 2**20
    manager.free(state)
    assert state.cache_slot is None
    return str([sample["actions"] for sample in report.to_dict()["samples"]])


@pytest.mark.parametrize("branches", ["none", "in one", "in turn"])
def test_requests_of_one_batch_keep_budgets_of_their_own(branches):
    asked = [(1, 8, 0.02), (2, 10, 0.3), (3, 6, 2.0), (4, 9, 0.1)]
    pipeline = Pipeline(branches)
    manager = OmniSlots(pipeline, error_budget=0.05)
    states = [request(sample, steps, error_budget=budget) for sample, steps, budget in asked]
    macs = count_macs(pipeline.transformer)
    together = served(pipeline, manager, states, [0, 0, 2, 5])
    alone = [request(sample, steps, error_budget=budget) for sample, steps, budget in asked]
    for state, decisions, one in zip(states, together, alone, strict=True):
        assert served(pipeline, manager, [one], [0]) == [decisions]
        assert torch.allclose(state.latents, one.latents, rtol=0, atol=1e-5 * float(one.latents.abs().max()))
    assert len(set(together)) > 1 and sum(macs) > 0
    manager.disable()


def test_nothing_to_lose_is_the_pipeline_without_and_disable_restores_it():
    plain, pipeline = Pipeline("in turn"), Pipeline("in turn")
    before = pipeline.transformer
    manager = OmniSlots(pipeline, error_budget=0.0)
    one, same = request(1, 6), request(1, 6)
    (decisions,) = served(pipeline, manager, [one], [0])
    served(plain, None, [same], [0])
    assert torch.equal(one.latents, same.latents)
    assert "compute" in decisions and "reuse" not in decisions and "extrapolate" not in decisions
    manager.disable()
    assert pipeline.transformer is before and not before._forward_hooks
    again = request(1, 6)
    served(pipeline, None, [again], [0])
    assert torch.equal(again.latents, same.latents)


def test_a_request_of_two_pictures_beside_one_of_one():
    pipeline = Pipeline("in one")
    manager = OmniSlots(pipeline)
    pair, one = request(1, 8, 5, error_budget=[0.02, 1.0]), request(2, 8, speedup=2.0)
    decisions = served(pipeline, manager, [pair, one], [0, 1])
    twin = request(1, 8, 5, error_budget=[0.02, 1.0])
    assert served(pipeline, manager, [twin], [0]) == decisions[:1]
    assert torch.allclose(pair.latents, twin.latents, atol=1e-5)


def test_one_request_by_itself_goes_on_where_it_was():
    pipeline = Pipeline("none")
    manager = OmniSlots(pipeline, error_budget=0.5)
    state = request(1, 6)
    pipeline.prepare_encode(state)
    assert manager.activate(state) is False and manager.report(state) is not None
    manager.deactivate(state)
    assert manager.activate([state]) == [True]
    manager.deactivate()
    manager.free(state)
    manager.free(state)  # twice does nothing
    assert manager.report(state) is None and manager.activate(state) is False


def test_calls_outside_of_a_step_pass_and_other_rows_are_one_error():
    plain, pipeline = Pipeline("none"), Pipeline("none")
    manager = OmniSlots(pipeline)
    states = [request(1, 4), request(2, 4)]
    with torch.no_grad():
        for state in states:
            pipeline.prepare_encode(state)
        assert torch.equal(pipeline.denoise_step(states), plain.denoise_step(states))  # a warm-up
        manager.activate(states)
        with pytest.raises(PipelineError, match="called with 1 rows for 2 requests"):
            pipeline.denoise_step(states[:1])
        manager.deactivate(states)
        wrong = request(3, 4, error_budget=-1.0)
        pipeline.prepare_encode(wrong)
        with pytest.raises(BudgetError):
            manager.activate([wrong])
    assert isinstance(manager.cache, dicache.Cache)
