"""A network that feeds the denoiser alone does not run for samples that this skips, and nothing else changes."""

import weakref
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

import dicache
from dicache.controllers.interval import Interval
from dicache.hosts import side_networks
from dicache.probes.first_blocks import FirstBlocks
from helpers.watching import count_macs, snapshot, strips
from pipelines.controls import (
    CONTROLS,
    controlling,
    draw_flux_control,
    draw_unet_control,
    make_flux_control,
    make_unet_control,
)
from pipelines.neighbours import model_offload, quiet, sequential_offload

STEPS, BUDGET = 10, 2.0
SCHEDULERS = [
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
]
WITH_CONTROL = [name for name in CONTROLS if name.endswith("ControlNet")]


@contextmanager
def running_everywhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(side_networks, "begin_step", lambda *_: None)
        yield


def calls_of(network: nn.Module) -> list[int]:
    """Rows of every call that really runs, from now on: an inner layer is listened to."""
    rows = list[int]()
    inner = next(m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    inner.register_forward_hook(lambda _, args, output: rows.append(len(output)))
    return rows


def both(monkeypatch: pytest.MonkeyPatch, pipe: Any, draw: Any, samples: list[int], **enabling: Any) -> Any:
    """Latents, decisions and reports with the network skipped, and with it running everywhere."""
    results = []
    for skips in (True, False):
        with dicache.enable(pipe, **enabling) as cache:
            if skips:
                drawn = draw(pipe, samples, STEPS)
            else:
                with running_everywhere(monkeypatch):
                    drawn = draw(pipe, samples, STEPS)
        results.append((drawn, strips(cache), cache.report().to_dict()))
    return results


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_it_runs_at_computed_steps_alone_and_no_latent_changes(name, monkeypatch):
    pipe, tiny = quiet(CONTROLS[name].make()), CONTROLS[name]
    (drawn, decisions, facts), (expected, same, everywhere) = both(
        monkeypatch, pipe, tiny.draw, [1], error_budget=BUDGET
    )
    assert torch.equal(drawn, expected) and decisions == same
    (network,), (running,) = facts["side_networks"], everywhere["side_networks"]
    computed = decisions[0].count("#")
    assert computed < STEPS
    assert network["macs"] == pytest.approx(running["macs"] * computed / STEPS)
    assert network["uncached_macs"] == running["uncached_macs"] == running["macs"]
    assert facts["uncached_macs"] == everywhere["uncached_macs"]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: s.__name__)
def test_whatever_solver_runs(scheduler, monkeypatch):
    pipe = quiet(make_unet_control())
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    rows = calls_of(pipe.controlnet)

    def draw(*args: Any) -> torch.Tensor:
        rows.clear()
        torch.manual_seed(0)
        drawn = draw_unet_control(*args)
        counts.append(len(rows))
        return drawn

    counts = list[int]()
    (drawn, decisions, facts), (expected, same, _) = both(monkeypatch, pipe, draw, [1, 2], error_budget=BUDGET)
    assert torch.equal(drawn, expected) and decisions == same
    skipped, everywhere = counts
    assert skipped < everywhere
    (network,) = facts["side_networks"]
    assert network["macs"] / network["uncached_macs"] == pytest.approx(skipped / everywhere)


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_it_runs_for_the_samples_that_compute(name, monkeypatch):
    pipe, tiny = quiet(CONTROLS[name].make()), CONTROLS[name]
    macs = count_macs(pipe.controlnet)
    budgets = {"error_budget": [BUDGET, 0.0, BUDGET]}
    (drawn, decisions, facts), (expected, same, _) = both(monkeypatch, pipe, tiny.draw, [1, 2, 3], **budgets)
    assert decisions == same and decisions[1] == "#" * STEPS
    assert (drawn - expected).norm() / expected.norm() < 1e-5  # kernels for fewer rows round otherwise
    executed = sum(macs[:STEPS])
    assert facts["side_networks"][0]["macs"] == pytest.approx(executed, rel=0.01)
    assert sum(macs[STEPS:]) == pytest.approx(facts["side_networks"][0]["uncached_macs"], rel=0.01)
    work = [sample["computed_fraction"] for sample in facts["samples"]]
    assert work[1] == pytest.approx(1) and max(work[0], work[2]) < 1


def test_budget_0_is_exact_and_undo_leaves_nothing():
    pipe = quiet(make_unet_control())
    plain, before = draw_unet_control(pipe, [1, 2], STEPS), snapshot(pipe.controlnet)
    with dicache.enable(pipe, error_budget=0.0):
        assert torch.equal(draw_unet_control(pipe, [1, 2], STEPS), plain)
    with dicache.enable(pipe, error_budget=BUDGET):
        draw_unet_control(pipe, [1, 2], STEPS)
    assert snapshot(pipe.controlnet) == before
    assert torch.equal(draw_unet_control(pipe, [1, 2], STEPS), plain)


@pytest.mark.parametrize("neighbour", [model_offload, sequential_offload], ids=lambda f: f.__name__)
@pytest.mark.parametrize("order", ["before", "after"])
def test_beside_offload(neighbour, order):
    pipe = quiet(make_flux_control())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        drawn = draw_flux_control(pipe, [1], STEPS)
    expected = cache.report().to_dict()["side_networks"]
    neighbour(pipe) if order == "before" else None
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        neighbour(pipe) if order == "after" else None
        assert torch.equal(draw_flux_control(pipe, [1], STEPS), drawn)
    assert cache.report().to_dict()["side_networks"][0]["uncached_macs"] == expected[0]["uncached_macs"]


# What it is called with changes while nobody reads what it gives.


def changing(pipe: Any, at: int, change: Any) -> Any:
    def call(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return (change(tensors) or tensors) if i == at else tensors

    return call


def test_a_control_that_ends_half_way_is_seen_though_it_is_skipped(monkeypatch):
    pipe = quiet(make_unet_control())
    strong = {"controlnet_conditioning_scale": 1.0, "control_guidance_end": 0.5}

    def draw(*args: Any) -> torch.Tensor:
        return draw_unet_control(*args, **strong)

    (_, decisions, facts), _ = both(monkeypatch, pipe, draw, [1], error_budget=BUDGET)
    assert any("conditions were changed half-way (controlnet.conditioning_scale)" in note for note in facts["warnings"])
    assert decisions[0][STEPS // 2] == "#"


def test_another_prompt_is_seen_though_it_is_skipped():
    pipe = quiet(make_unet_control())

    def other(tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "prompt_embeds": tensors["prompt_embeds"].flip(1) + 1.0}

    watching = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_unet_control(pipe, [1], STEPS, callback_on_step_end=changing(pipe, 4, other), **watching)
    assert any("encoder_hidden_states" in note for note in cache.report().to_dict()["warnings"])
    assert strips(cache)[0][5] == "#"


@pytest.mark.parametrize("samples", [[1], [1, 2]])
def test_what_computes_unforeseen_has_the_network_run_late(samples, monkeypatch):
    """Weights are written to after the network was left out, before the denoiser is called."""
    results = []
    for skips in (True, False):
        pipe = quiet(make_unet_control())
        macs = count_macs(pipe.controlnet)
        calls, rows, before = list[int](), calls_of(pipe.controlnet), list[int]()

        def write(
            *_: Any, pipe: Any = pipe, calls: list[int] = calls, before: list[int] = before, macs: Any = macs
        ) -> None:
            calls.append(0)
            if len(calls) == STEPS // 2:
                before.append(len(macs))
                with torch.no_grad():
                    pipe.unet.conv_out.bias.add_(0.5)

        with dicache.enable(pipe, error_budget=BUDGET) as cache:
            handle = pipe.controlnet.register_forward_hook(write)
            if skips:
                drawn = draw_unet_control(pipe, samples, STEPS)
            else:
                with running_everywhere(monkeypatch):
                    drawn = draw_unet_control(pipe, samples, STEPS)
            handle.remove()
        results.append((drawn, strips(cache), len(rows)))
        facts = cache.report().to_dict()
        assert any("weights were changed half-way" in note for note in facts["warnings"])
        # The run that begins there has the call that was left out and made up for; without skipping it was made before.
        since = macs[before[0] - (not skips) :]
        assert facts["side_networks"][0]["macs"] == pytest.approx(sum(since), rel=0.01)
    (drawn, decisions, ran), (expected, same, everywhere) = results
    assert torch.equal(drawn, expected) and decisions == same and ran < everywhere


def test_late_outputs_are_those_of_the_network(monkeypatch):
    """Where nothing that was foreseen holds, the run is the one in which the network runs everywhere."""
    pipe = quiet(make_unet_control())
    with monkeypatch.context() as patched:
        patched.setattr(side_networks, "_reads", lambda *_: True)
        rows = calls_of(pipe.controlnet)
        with dicache.enable(pipe, error_budget=BUDGET) as cache:
            drawn = draw_unet_control(pipe, [1, 2], STEPS)
        facts = cache.report().to_dict()
    assert len(rows) == STEPS and facts["side_networks"][0]["macs"] == facts["side_networks"][0]["uncached_macs"]
    with running_everywhere(monkeypatch), dicache.enable(pipe, error_budget=BUDGET):
        assert torch.equal(draw_unet_control(pipe, [1, 2], STEPS), drawn)


# Where nobody can tell before.


def test_what_a_checker_of_pictures_gets_is_not_kept_once_the_run_is_over():
    pipe = quiet(make_unet_control())
    pipe.checker = checker = nn.Linear(4, 4)
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_unet_control(pipe, [1], STEPS)

        def checked() -> Any:
            """In a frame of its own: frames that hold a pipeline are looked through."""
            picture = torch.ones(1, 4)
            checker(picture)
            return weakref.ref(picture)

        assert checked()() is None and cache.report().to_dict()["complete"]


def test_a_sample_of_a_batch_has_its_own_share_of_the_network():
    pipe = quiet(make_unet_control())
    with dicache.enable(pipe, error_budget=[BUDGET, 0.0]) as cache:
        draw_unet_control(pipe, [1, 2], STEPS)
    whole = cache.report()
    apart = [whole.of_sample(i).to_dict() for i in range(2)]
    assert sum(each["executed_macs"] for each in apart) == pytest.approx(whole.to_dict()["executed_macs"])
    assert apart[0]["compute_speedup"] > 1 and apart[1]["compute_speedup"] == pytest.approx(1)


def test_a_probe_inside_the_denoiser_has_it_run_everywhere():
    pipe = quiet(make_flux_control())
    config = dicache.Config(controller=Interval(2), probe=FirstBlocks(1))
    rows = calls_of(pipe.controlnet)
    with dicache.enable(pipe, config=config) as cache:
        draw_flux_control(pipe, [1], STEPS)
    assert len(rows) == STEPS
    assert any("never skipped" in note for note in cache.report().to_dict()["warnings"])


def test_outputs_that_the_pipeline_changes_on_their_way_are_computed_everywhere():
    pipe = quiet(make_unet_control())
    rows = calls_of(pipe.controlnet)
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_unet_control(pipe, [1], STEPS, guess_mode=True)
    assert len(rows) == STEPS and cache.report().compute_speedup < cache.report().denoiser_speedup


def test_a_run_that_ends_between_network_and_denoiser_is_not_over():
    pipe = quiet(make_unet_control())
    calls = list[int]()

    def broken(*_: Any) -> None:
        calls.append(0)
        if len(calls) == STEPS:
            raise RuntimeError

    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        handle = pipe.controlnet.register_forward_hook(broken)
        with pytest.raises(RuntimeError):
            draw_unet_control(pipe, [1], STEPS)
        handle.remove()
        facts = cache.report().to_dict()
        assert not facts["complete"] and len(facts["steps"]) == STEPS - 1
        drawn = draw_unet_control(pipe, [1], STEPS)
        assert cache.report().to_dict()["complete"]
    with dicache.enable(pipe, error_budget=BUDGET):
        assert torch.equal(draw_unet_control(pipe, [1], STEPS), drawn)


def test_two_caches_on_pipelines_that_share_a_control():
    one = quiet(make_unet_control())
    other = quiet(make_unet_control())
    other.controlnet = one.controlnet
    alone = []
    for pipe in (one, other):
        with dicache.enable(pipe, error_budget=BUDGET):
            alone.append(draw_unet_control(pipe, [1], STEPS))
    with dicache.enable(one, error_budget=BUDGET), dicache.enable(other, error_budget=BUDGET):
        for pipe, drawn in zip((one, other), alone, strict=True):
            assert torch.equal(draw_unet_control(pipe, [1], STEPS), drawn)
    assert "_diffusers_hook" not in vars(one.controlnet) and _get_current_dispatch_mode() is None


def test_another_size_and_another_control_begin_with_a_counted_run():
    pipe = quiet(make_unet_control())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        for samples in ([1], [1, 2], [3]):
            draw_unet_control(pipe, samples, STEPS)
        first = cache.report().to_dict()["side_networks"][0]
        pipe.controlnet = controlling(ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8,)))
        draw_unet_control(pipe, [1], STEPS)
        draw_unet_control(pipe, [1], STEPS)
        second = cache.report().to_dict()["side_networks"][0]
    assert second["uncached_macs"] > first["uncached_macs"]
    assert second["macs"] < second["uncached_macs"]
