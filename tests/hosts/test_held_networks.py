"""A network that feeds the denoiser alone is held, by a rule of its own, while the denoiser computes."""

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

import dicache
from dicache.approximators.linear import Extrapolate
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.fixed import Fixed
from dicache.controllers.interval import Interval
from dicache.controllers.noise_window import NoiseWindow
from dicache.errors import ModeError
from dicache.sites import Control, Spans
from helpers.watching import strips
from pipelines.controls import (
    draw_flux_control,
    draw_unet,
    draw_unet_control,
    make_flux_control,
    make_unet,
    make_unet_control,
)
from pipelines.neighbours import quiet

STEPS, BUDGET = 10, 2.0
TINY = {"UNet": (make_unet_control, draw_unet_control), "FLUX": (make_flux_control, draw_flux_control)}


def by_hand(pipe: Any, draw: Any, samples: list[int], computed: set[int], *, line: bool = False) -> tuple[Tensor, int]:
    """What a loop draws that calls the network at these steps and hands on its newest outputs at the others, or the
    line through the last two; and how often it ran.
    """
    forward, kept, steps = pipe.controlnet.forward, list[Any](), list[int]()

    def held(*args: Any, **kwargs: Any) -> Any:
        step = len(steps)
        steps.append(step)
        if step in computed:
            kept.append((step, forward(*args, **kwargs)))
            return kept[-1][1]
        if not line:
            return kept[-1][1]
        assert pipe.scheduler.sigmas is not None
        now, newest, older = (float(pipe.scheduler.sigmas[i]) for i in (step, kept[-1][0], kept[-2][0]))
        ratio = (now - newest) / (newest - older)
        return tuple(
            [a + ratio * (a - b) for a, b in zip(new, old, strict=True)]
            for new, old in zip(kept[-1][1], kept[-2][1], strict=True)
        )

    pipe.controlnet.forward = held
    try:
        return draw(pipe, samples, STEPS), len(kept)
    finally:
        del pipe.controlnet.forward


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("samples", [[1], [1, 2]])
def test_an_interval_is_a_loop_written_by_hand(name, samples):
    make, draw = TINY[name]
    pipe = quiet(make())
    computed = {0, 1, *range(3, STEPS, 2)}
    expected, ran = by_hand(pipe, draw, samples, computed)
    config = dicache.Config(Fixed((frozenset(computed),)), sites=Control())
    with dicache.enable(pipe, config=config) as cache:
        assert torch.equal(draw(pipe, samples, STEPS), expected)
    facts = cache.report().to_dict()
    (network,) = facts["side_networks"]
    assert network["macs"] / network["uncached_macs"] == pytest.approx(ran / STEPS)
    assert facts["denoiser_speedup"] == pytest.approx(1) and facts["compute_speedup"] > 1


def test_a_line_is_a_loop_written_by_hand():
    pipe = quiet(make_flux_control())
    computed = {0, 1, 2, 5, 8}
    expected, _ = by_hand(pipe, draw_flux_control, [1], computed, line=True)
    config = dicache.Config(Fixed((frozenset(computed),)), approximators=(Extrapolate(),), sites=Control())
    with dicache.enable(pipe, config=config):
        drawn = draw_flux_control(pipe, [1], STEPS)
    assert (drawn - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("scheduler", [None, DPMSolverMultistepScheduler])
def test_from_a_level_of_noise_on_it_is_frozen_beside_skipped_evaluations(scheduler):
    pipe = quiet(make_unet_control())
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    frozen = NoiseWindow(Interval(1000), 0.0, 0.5)
    reports = {}
    for name, control in (("frozen", frozen), ("fresh", None)):
        with dicache.enable(pipe, config=dicache.Config(Interval(2), control=control)) as cache:
            draw_unet_control(pipe, [1, 2], STEPS)
        reports[name] = cache.report().to_dict(), strips(cache)
    (held, decisions), (fresh, same) = reports["frozen"], reports["fresh"]
    assert decisions == same
    assert held["side_networks"][0]["macs"] < fresh["side_networks"][0]["macs"]


def test_beside_sites_inside_the_denoiser_it_is_held_too():
    pipe = quiet(make_flux_control())
    with dicache.enable(pipe, config=dicache.Config(Interval(2), sites=Spans(1), control=Interval(3))) as cache:
        draw_flux_control(pipe, [1], STEPS)
    (network,) = cache.report().to_dict()["side_networks"]
    assert network["macs"] < network["uncached_macs"] / 2


def test_samples_hold_it_apart():
    pipe = quiet(make_unet_control())
    schedules = (frozenset(range(STEPS)), frozenset({0, 1, 5}))
    alone = []
    for i, schedule in enumerate(schedules):
        with dicache.enable(pipe, config=dicache.Config(Fixed((schedule,)), sites=Control())):
            alone.append(draw_unet_control(pipe, [i + 1], STEPS))
    with dicache.enable(pipe, config=dicache.Config(Fixed(schedules), sites=Control())) as cache:
        drawn = draw_unet_control(pipe, [1, 2], STEPS)
    assert torch.allclose(drawn, torch.cat(alone), rtol=1e-4, atol=1e-4)
    work = [sample["computed_fraction"] for sample in cache.report().to_dict()["samples"]]
    assert work[0] == pytest.approx(1) and work[1] < 0.9


def test_what_it_is_called_with_is_watched():
    pipe = quiet(make_unet_control())
    with dicache.enable(pipe, config=dicache.Config(Interval(1000), sites=Control())) as cache:
        draw_unet_control(pipe, [1], STEPS, control_guidance_end=0.5)
    (network,) = cache.report().to_dict()["side_networks"]
    assert network["macs"] / network["uncached_macs"] == pytest.approx(2 / STEPS)
    assert any("conditioning_scale" in note for note in cache.report().to_dict()["warnings"])


def test_what_cannot_be_held_says_so():
    pipe = quiet(make_unet_control())
    with dicache.enable(pipe, config=dicache.Config(Interval(3), sites=Control())) as cache:
        draw_unet_control(pipe, [1], STEPS, guess_mode=True)
    assert any("ControlNetModel was not held" in note for note in cache.report().to_dict()["warnings"])


def test_where_there_is_no_such_network_the_report_says_so():
    pipe = quiet(make_unet())
    with dicache.enable(pipe, config=dicache.Config(Interval(3), sites=Control())) as cache:
        draw_unet(pipe, [1], STEPS)
    assert any("no network beside the denoiser was held" in note for note in cache.report().to_dict()["warnings"])


def test_a_rule_that_goes_by_errors_is_refused_by_name():
    with pytest.raises(ModeError, match="how far one of a network beside the denoiser reaches"):
        dicache.Config(Budgeted(0.05), sites=Control())
    with pytest.raises(ModeError, match="Give the rule once"):
        dicache.Config(Interval(2), sites=Control(), control=Interval(2))
    with pytest.raises(ModeError, match="Interval"):
        dicache.Config(Interval(2), control=Budgeted(0.05))
