"""HGC: control frozen from a gate on, beside blocks or cross-attention that are held."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

import dicache
from dicache import presets
from dicache.controllers.gate import Gate
from dicache.controllers.interval import Interval
from dicache.errors import ModeError
from dicache.sites import Control
from helpers.watching import strips
from pipelines.controls import draw_unet_control, make_unet_control
from pipelines.neighbours import quiet

STEPS = 12


def frozen_by_hand(pipe: Any, first: int, last: int) -> Tensor:
    """Control is fresh in the steps from `first` up to `last`, and else what it was at the newest of them, or at the
    step before the first.
    """
    forward, outputs, steps = pipe.controlnet.forward, list[Any](), list[int]()

    def frozen(*args: Any, **kwargs: Any) -> Any:
        steps.append(0)
        if not outputs or first <= len(steps) - 1 < last:
            outputs[:] = [forward(*args, **kwargs)]
        return outputs[0]

    pipe.controlnet.forward = frozen
    try:
        return draw_unet_control(pipe, [1, 2], STEPS)
    finally:
        del pipe.controlnet.forward


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler], ids=lambda s: s.__name__)
def test_control_that_is_frozen_after_the_gate_is_a_loop_written_by_hand_and_costs_less_than_before_it(scheduler):
    pipe = quiet(make_unet_control())
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    fresh, gate = draw_unet_control(pipe, [1, 2], STEPS), STEPS // 2
    with dicache.enable(pipe, config=dicache.Config(Gate(Interval(1), 0.5), sites=Control())) as cache:
        after = draw_unet_control(pipe, [1, 2], STEPS)
    assert torch.equal(after, frozen_by_hand(pipe, 0, gate))
    (network,) = cache.report().to_dict()["side_networks"]
    assert network["macs"] / network["uncached_macs"] == pytest.approx(gate / STEPS)
    before = frozen_by_hand(pipe, gate, STEPS)
    assert 0 < apart(after, fresh) < apart(before, fresh) / 2


@pytest.mark.parametrize("grain", ["blocks", "prompts"])
def test_both_grains_run_with_the_control_frozen(grain):
    pipe = quiet(make_unet_control())
    fresh = draw_unet_control(pipe, [1, 2], STEPS)
    with dicache.enable(pipe, config=presets.hgc(3, 0.5, grain=grain)) as cache:
        drawn = draw_unet_control(pipe, [1, 2], STEPS)
    facts = cache.report().to_dict()
    (network,) = facts["side_networks"]
    assert network["macs"] / network["uncached_macs"] == pytest.approx(math.ceil(0.5 * STEPS) / STEPS)
    assert facts["executed_macs"] < facts["uncached_macs"] and 0 < apart(drawn, fresh) < 1
    if grain == "blocks":
        assert strips(cache)[0].count("#") == 2 + len(range(4, STEPS, 3))


def test_another_grain_is_refused():
    with pytest.raises(ModeError, match="blocks"):
        presets.hgc(grain="tokens")
