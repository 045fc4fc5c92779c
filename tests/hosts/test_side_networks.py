"""Law 13: work is that of all networks that run in the denoising loop, those beside the denoiser too."""

import copy
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, MultiControlNetModel, StableDiffusionControlNetPipeline
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import _get_current_dispatch_mode

import dicache
from dicache.errors import CopyError
from helpers.watching import count_macs, snapshot
from pipelines.controls import (
    CONTROLS,
    components,
    controlling,
    draw_flux_control,
    draw_unet,
    draw_unet_control,
    make_flux_control,
    make_unet,
    make_unet_control,
)
from pipelines.neighbours import EAGER, model_offload, quiet, sequential_offload
from pipelines.parts import pictures
from pipelines.table import PIPELINES
from pipelines.tiny import Tiny, draw_flux, make_flux

STEPS, BUDGET = 8, 2.0
WITH_CONTROL = [name for name in CONTROLS if name.endswith("ControlNet")]
"""With a network beside the denoiser; an XS is part of it."""


def make_two_controls() -> StableDiffusionControlNetPipeline:
    pipe = make_unet()
    nets = [
        controlling(ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4,))) for _ in range(2)
    ]
    return StableDiffusionControlNetPipeline(
        controlnet=MultiControlNetModel(nets), requires_safety_checker=False, **components(pipe)
    )


def draw_two_controls(pipe: Any, samples: list[int], steps: int, **kwargs: Any) -> torch.Tensor:
    image = pictures(samples)
    scales = {"controlnet_conditioning_scale": [0.3, 0.1]}
    return draw_unet(pipe, samples, steps, image=[image, 1 - image], **scales, **kwargs)


def macs_of_loop(pipe: Any) -> dict[str, list[float]]:
    """What every call of a network executes from now on, text encoders and autoencoders apart, by component."""
    parts = {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}
    return {name: count_macs(part) for name, part in parts.items() if "encoder" not in name and name != "vae"}


OTHERS = ("SDXL", "AudioLDM 2", "Wan 2.1", "Wan 2.2, two experts")
TINY = {
    **CONTROLS,
    "SD 1.5 two ControlNets": Tiny(make_two_controls, draw_two_controls),
    **{name: PIPELINES[name] for name in OTHERS},
}


@pytest.mark.parametrize("name", TINY)
def test_what_is_told_is_what_all_networks_of_the_loop_execute(name):
    pipe, tiny = quiet(TINY[name].make()), TINY[name]
    macs = macs_of_loop(pipe)
    tiny.draw(pipe, [1, 2], STEPS)
    whole = sum(map(sum, macs.values()))
    [calls.clear() for calls in macs.values()]
    with dicache.enable(pipe, error_budget=[BUDGET, 0.0]) as cache:
        tiny.draw(pipe, [1, 2], STEPS)
    executed = sum(map(sum, macs.values()))
    facts = cache.report().to_dict()
    assert facts["uncached_macs"] == pytest.approx(whole, rel=0.01)
    assert facts["executed_macs"] == pytest.approx(executed, rel=0.01)
    assert facts["compute_speedup"] == pytest.approx(whole / executed, rel=0.01)
    side = sum(macs["controlnet"]) if "controlnet" in macs else 0.0
    assert sum(network["macs"] for network in facts["side_networks"]) == pytest.approx(side, rel=0.01)
    assert sum(network["share"] for network in facts["side_networks"]) == pytest.approx(side / executed, rel=0.01)
    assert bool(side) == (name in WITH_CONTROL or "ControlNets" in name)
    work = [sample["computed_fraction"] for sample in facts["samples"]]
    assert work[0] < 1 and work[1] == pytest.approx(1)
    assert sum(work) / 2 == pytest.approx(executed / whole, rel=0.01)


@pytest.mark.parametrize("name", WITH_CONTROL)
def test_no_decision_and_no_latent_depends_on_it_and_undo_is_exact(name):
    pipe, tiny = quiet(TINY[name].make()), TINY[name]
    with dicache.enable(pipe, error_budget=0.0):
        tiny.draw(pipe, [1, 2], STEPS)
    plain = tiny.draw(pipe, [1, 2], STEPS)
    before = snapshot(pipe.controlnet)
    with dicache.enable(pipe, error_budget=0.0) as cache:
        assert torch.equal(tiny.draw(pipe, [1, 2], STEPS), plain)
        assert cache.report().to_dict()["side_networks"]
    assert snapshot(pipe.controlnet) == before
    network = type(pipe.controlnet).__name__
    assert f"note: beside the denoiser: {network}, " in str(cache.report()) and network in cache._repr_html_()


def test_a_speedup_that_is_asked_for_is_the_denoisers_own():
    pipe = quiet(make_unet_control())
    with dicache.enable(pipe, speedup=2.0) as cache:
        draw_unet_control(pipe, [1, 2], STEPS)
    report = cache.report()
    assert report.compute_speedup == pytest.approx(report.denoiser_speedup, rel=0.05)  # control goes with it
    assert report.denoiser_speedup == pytest.approx(float(cache.trace.uncached.sum() / cache.trace.executed.sum()))
    assert not any("did not reach their speedup" in note for note in report.warnings)


def test_runs_do_not_add_up_and_one_that_was_broken_off_leaves_nothing_to_the_next():
    pipe = quiet(make_unet_control())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        draw_unet_control(pipe, [1], STEPS)
        first = cache.report().to_dict()
        handle = pipe.unet.register_forward_hook(lambda *_: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                draw_unet_control(pipe, [1], STEPS)
        handle.remove()
        draw_unet_control(pipe, [1], STEPS)
        again = cache.report().to_dict()
    assert again["side_networks"] == first["side_networks"]
    assert again["uncached_macs"] == first["uncached_macs"]


class Projection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Projector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Projection()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def calling(pipe: Any, heard: list[torch.Tensor]) -> Any:
    """A callback that calls the projector after every step."""

    def call(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        heard.append(pipe.projector(torch.ones(2, 4)))
        return given

    return call


@pytest.mark.parametrize(("before", "each", "after", "counted"), [(3, 0, 2, 0), (0, 1, 0, 7), (1, 1, 1, 7)])
def test_a_network_counts_where_it_runs_in_the_loop_and_not_before_or_behind_it(before, each, after, counted):
    pipe = quiet(make_flux())
    pipe.projector, pipe.text_encoder_9 = Projector(), Projector()

    def run(times: int) -> None:
        for _ in range(times):
            pipe.projector(torch.ones(2, 4)), pipe.text_encoder_9(torch.ones(2, 4))

    def between(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        run(each if i < STEPS - 1 else after)
        return given

    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        for _ in range(2):
            run(before)
            draw_flux(pipe, [1, 2], STEPS, callback_on_step_end=between)
    facts = cache.report().to_dict()["side_networks"]
    assert [(network["name"], network["macs"]) for network in facts] == [("Projector", 32.0 * counted)][: bool(counted)]


def test_another_pipeline_and_another_network_are_seen_when_they_run():
    one = quiet(make_unet())
    with dicache.enable(one, error_budget=BUDGET) as cache:
        other = quiet(make_unet_control())
        other.unet = one.unet
        draw_unet_control(other, [1], STEPS)
        draw_unet_control(other, [1], STEPS)
        first = cache.report().to_dict()["side_networks"]
        other.controlnet, old = (
            controlling(ControlNetModel.from_unet(one.unet, conditioning_embedding_out_channels=(8,))),
            other.controlnet,
        )
        draw_unet_control(other, [1], STEPS)
        draw_unet_control(other, [1], STEPS)
        (second,) = cache.report().to_dict()["side_networks"]
    assert len(first) == 1 and second["macs"] > first[0]["macs"]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in (old, other.controlnet))


# Beside the rest of the ecosystem.


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("neighbour", [model_offload, sequential_offload], ids=lambda f: f.__name__)
def test_offload_changes_nothing_of_what_is_counted(neighbour, order):
    pipe = quiet(make_flux_control())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        drawn = draw_flux_control(pipe, [1, 2], STEPS)
    expected = cache.report().to_dict()["side_networks"]
    neighbour(pipe) if order == "before" else None
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        neighbour(pipe) if order == "after" else None
        for _ in range(2):
            assert torch.equal(draw_flux_control(pipe, [1, 2], STEPS), drawn)
            assert cache.report().to_dict()["side_networks"] == expected
    assert not pipe.controlnet._forward_hooks and not pipe.controlnet._forward_pre_hooks


def compiled_parts(pipe: Any) -> None:
    pipe.projector.layer.compile(fullgraph=True, **EAGER)


def compiled_result(pipe: Any) -> None:
    pipe.projector = torch.compile(pipe.projector, fullgraph=True, **EAGER)


def compiled_in_place(pipe: Any) -> None:
    pipe.projector.compile(fullgraph=True, **EAGER)


def compiled_result_inside(pipe: Any) -> None:
    pipe.projector.layer = torch.compile(pipe.projector.layer, fullgraph=True, **EAGER)


WAYS = [compiled_parts, compiled_result, compiled_in_place, compiled_result_inside]


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("compiled", WAYS, ids=lambda f: f.__name__)
def test_a_compiled_network_runs_as_a_graph_and_is_counted_or_said_not_to_be(compiled, order):
    torch._dynamo.reset()
    pipe = quiet(make_flux())
    pipe.projector, heard = Projector(), []
    compiled(pipe) if order == "before" else None
    with dicache.enable(pipe, error_budget=BUDGET) as cache:
        compiled(pipe) if order == "after" else None
        for _ in range(2):
            counters.clear()
            draw_flux(pipe, [1, 2], STEPS, callback_on_step_end=calling(pipe, heard))
    assert all(torch.equal(output, heard[0]) for output in heard) and not counters["graph_break"]
    facts = cache.report().to_dict()
    hides = any("hides what it executes" in note for note in facts["warnings"])
    assert hides == (compiled in (compiled_in_place, compiled_result_inside))
    assert sum(network["macs"] for network in facts["side_networks"]) == (0 if hides else 32 * (STEPS - 1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_network_that_is_broken_off_while_it_is_counted_leaves_no_counter_behind(error):
    pipe = quiet(make_unet_control())
    with dicache.enable(pipe, error_budget=BUDGET) as cache:

        def broken(*_: Any) -> None:
            raise error

        handle = pipe.controlnet.mid_block.register_forward_hook(broken)
        with pytest.raises(error):
            draw_unet_control(pipe, [1], STEPS)
        if error is RuntimeError:
            assert _get_current_dispatch_mode() is None
        handle.remove()
        draw_unet_control(pipe, [1], STEPS)
        assert _get_current_dispatch_mode() is None and cache.report().to_dict()["side_networks"]
        handle = pipe.controlnet.mid_block.register_forward_hook(broken)
        with pytest.raises(error):
            draw_unet_control(pipe, [1, 2], STEPS)
    assert _get_current_dispatch_mode() is None


def test_a_network_that_is_listened_to_is_not_copied():
    pipe = quiet(make_unet_control())
    with dicache.enable(pipe, error_budget=BUDGET), pytest.raises(CopyError):
        copy.deepcopy(pipe.controlnet)
    copy.deepcopy(pipe.controlnet)
