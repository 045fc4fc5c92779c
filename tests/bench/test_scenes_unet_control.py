"""The UNet of the scenes with and without its ControlNet, under two solvers: what is skipped, what it costs, and that
nothing else changes. `make test` draws few steps, `make fuzz` 20 and 50.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import dicache
from dicache import presets
from dicache.bench.models import scenes_unet
from dicache.bench.models.scenes_unet import MODEL, draw, edges, pipeline
from dicache.controllers.interval import Interval
from dicache.hosts import side_networks
from dicache.reference.render import render
from dicache.reference.scenes import caption, scenes
from dicache.sites import Control
from helpers.fuzzing import LONG, spread

pytestmark = [
    pytest.mark.skipif(not MODEL.exists(), reason="scenes-unet's weights are in the repository only"),
    pytest.mark.long,
]

SHOWN = list(itertools.islice(scenes("calibration", seed=13), 2))
CAPTIONS, IMAGE = [caption(scene) for scene in SHOWN], edges(render(SHOWN))
STEPS = (20, 50) if LONG > 1 else (9,)
SETTINGS = list(itertools.product(("ddim", "dpm++"), STEPS))
IDS = [f"{solver} {steps}" for solver, steps in SETTINGS]
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
COUNTED = {CPU_ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
"""Torch has no formula for the CPU's attention."""


@pytest.fixture(scope="module")
def pipes() -> dict[bool, Any]:
    """With control and without."""
    made = {control: pipeline(control=control) for control in (False, True)}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def drawn(pipes) -> Callable[..., Tensor]:
    def drawn(control: bool, solver: str, steps: int) -> Tensor:
        pipes[control].scheduler = scenes_unet.scheduler(solver)
        return draw(pipes[control], CAPTIONS, steps, image=IMAGE if control else None)

    return drawn


@contextmanager
def multiplied(*networks: nn.Module) -> Iterator[list[float]]:
    """What calls of these execute that really run, by torch's own counter; around `enable`, not inside."""
    macs: list[float] = []

    def counting(forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
                output = forward(*args, **kwargs)
            macs.append(counter.get_total_flops() / 2)
            return output

        return wrapper

    for network in networks:
        network.forward = counting(network.forward)
    try:
        yield macs
    finally:
        for network in networks:
            del network.forward


@pytest.mark.parametrize("control", [False, True], ids=["plain", "controlled"])
@pytest.mark.parametrize(("solver", "steps"), SETTINGS, ids=IDS)
def test_a_budget_of_nothing_costs_no_bit(pipes, drawn, control, solver, steps):
    plain = drawn(control, solver, steps)
    with dicache.enable(pipes[control], error_budget=0.0):
        assert torch.equal(drawn(control, solver, steps), plain)
    with dicache.enable(pipes[control], error_budget=0.1):
        assert not torch.equal(drawn(control, solver, steps), plain)
    assert torch.equal(drawn(control, solver, steps), plain)


@contextmanager
def held_by_hand(network: nn.Module, due: set[int]) -> Iterator[list[Any]]:
    """It runs at every step, and gives what it gave at the last one that is due."""
    forward, made, given = network.forward, list[Any](), list[Any]()

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        fresh = forward(*args, **kwargs)
        if len(made) in due:
            given[:] = [fresh]
        made.append(fresh)
        return given[0]

    network.forward = wrapper
    try:
        yield made
    finally:
        del network.forward


@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize(("solver", "steps"), SETTINGS, ids=IDS)
def test_with_the_control_held_latents_are_those_with_it_run_everywhere_and_held_by_hand(
    pipes, drawn, solver, steps, interval
):
    pipe = pipes[True]
    config = dicache.Config(Interval(interval), sites=Control())
    with multiplied(pipe.controlnet) as macs, dicache.enable(pipe, config=config):
        held = drawn(True, solver, steps)
    due = set(range(0, steps, interval))
    assert len(macs) == len(due)
    with held_by_hand(pipe.controlnet, due) as made:
        assert torch.equal(drawn(True, solver, steps), held)
    assert len(made) == steps and not torch.equal(drawn(True, solver, steps), held)


@pytest.mark.parametrize("options", [{"error_budget": 0.1}, {"error_budget": [0.1, 0.02]}, {"speedup": 2.0}], ids=str)
@pytest.mark.parametrize(("solver", "steps"), SETTINGS, ids=IDS)
def test_with_the_control_skipped_latents_are_those_with_it_run_everywhere(
    pipes, drawn, monkeypatch, solver, steps, options
):
    pipe = pipes[True]
    with multiplied(pipe.controlnet) as skipped, dicache.enable(pipe, **options):
        latents = drawn(True, solver, steps)
    with monkeypatch.context() as patched:
        patched.setattr(side_networks, "begin_step", lambda *_: None)
        with multiplied(pipe.controlnet) as everywhere, dicache.enable(pipe, **options):
            expected = drawn(True, solver, steps)
    assert len(everywhere) == steps and sum(skipped) < sum(everywhere)
    if len(set(skipped)) == 1:  # all rows at every call: kernels for fewer rows round otherwise
        assert torch.equal(latents, expected)
    assert float((latents - expected).norm() / expected.norm()) < 1e-5


WAYS = {
    "error_budget": {"error_budget": 0.1},
    "speedup": {"speedup": 2.0},
    "deepcache": {"config": presets.deepcache(2)},
    "tgate": {"config": presets.tgate(0.4, 3)},
}
WITH_CONTROL = {
    "Control()": {"config": dicache.Config(Interval(3), sites=Control())},
    "hgc": {"config": presets.hgc(3)},
}


CASES = [
    (*setting, control, way)
    for setting in SETTINGS
    for control in (False, True)
    for way in (WAYS | WITH_CONTROL if control else WAYS)
]


@pytest.mark.parametrize(("solver", "steps", "control", "way"), spread(CASES, 2))
def test_work_is_what_torch_counts_over_both_networks(pipes, drawn, solver, steps, control, way):
    pipe, options = pipes[control], (WAYS | WITH_CONTROL)[way]
    networks = [pipe.unet, pipe.controlnet] if control else [pipe.unet]
    with multiplied(*networks) as uncached:
        drawn(control, solver, steps)
    with multiplied(*networks) as executed, dicache.enable(pipe, **options) as cache:
        drawn(control, solver, steps)
    told = cache.report().to_dict()
    assert told["executed_macs"] == pytest.approx(sum(executed), rel=0.01)
    assert told["uncached_macs"] == pytest.approx(sum(uncached), rel=0.01)
    assert sum(executed) < 0.99 * sum(uncached)
