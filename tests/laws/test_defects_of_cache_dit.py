"""Defects that cache-dit has (1.5.3), each a test that dicache has it not.

Four more are shown side by side on the peers and here by `dicache.bench.studies.peer_defects`: batch mates that decide
together, state that leaks into the next request, branches told apart by parity, blocks that work in place.
"""

from typing import Any

import pytest
import torch

import dicache
from dicache import presets
from dicache.approximators.hold import Reuse
from dicache.controllers.fixed import Fixed
from helpers.watching import strips
from pipelines.bare import error
from pipelines.neighbours import BUDGET, STEPS, quiet
from pipelines.tiny import (
    PIPELINES,
    draw_flux,
    embeds,
    make_flux,
    make_sd3,
    make_wan,
)


def test_ranks_decide_on_their_own(monkeypatch):
    """One ungrouped all_reduce couples the decisions of all data-parallel ranks. - cache-dit"""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a collective was called")

    collectives = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "barrier", "send")
    for name in collectives:
        monkeypatch.setattr(torch.distributed, name, refuse)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    with dicache.enable(pipe := quiet(make_flux()), error_budget=BUDGET) as cache:
        draw_flux(pipe, [1], STEPS)
    assert cache.report().compute_speedup > 1.2


@pytest.mark.parametrize("steps", [(8, 14), (14, 8)])
def test_a_run_longer_or_shorter_than_the_last_is_a_run_of_its_own_and_reported_whole(steps):
    """Configured for 20 and run for 30, the context restarts half-way and the report ends at 20. - cache-dit"""
    model = make_wan().transformer
    latent, text = embeds([1], 16, 2, 4, 4), embeds([1], 8, 32, salt=1)

    def run(count: int) -> torch.Tensor:
        x = latent
        with torch.no_grad():
            for i in range(count):
                time = torch.tensor([1000 * (1 - i / count)])
                x = x - model(x, time, text, return_dict=False)[0] / count
        return x

    with dicache.enable(model, error_budget=BUDGET) as cache:
        fresh = run(steps[1])
        (expected,) = strips(cache)
    with dicache.enable(model, error_budget=BUDGET) as cache:
        run(steps[0])
        assert torch.equal(run(steps[1]), fresh)
        assert strips(cache) == [expected] and len(expected) == steps[1]


def test_disabling_one_of_two_pipelines_leaves_the_other_cached():
    """Two pipelines of one class: the second crashes after the first was disabled. - cache-dit"""
    one, other = quiet(make_flux()), quiet(make_flux())
    first, second = dicache.enable(one, error_budget=BUDGET), dicache.enable(other, error_budget=BUDGET)
    expected = draw_flux(other, [1], STEPS)
    first.disable()
    assert torch.equal(draw_flux(other, [1], STEPS), expected) and second.report().compute_speedup > 1.2
    plain = draw_flux(one, [1], STEPS)
    second.disable()
    assert torch.equal(draw_flux(other, [1], STEPS), plain)


@pytest.mark.parametrize(
    "typo",
    [
        lambda pipe: dicache.enable(pipe, error_bugdet=0.1),
        lambda pipe: dicache.enable(pipe, error_budget=0.1, compile_block=True),
        lambda pipe: dicache.Config(Fixed(frozenset()), approximator=(Reuse(),)),
        lambda pipe: presets.first_block_cache(residual_diff_threshold=0.1),
    ],
)
def test_a_misspelt_option_is_refused(typo):
    """Unknown keys of a configuration are accepted and ignored. - cache-dit"""
    with pytest.raises(TypeError, match="unexpected keyword"):
        typo(make_flux())


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("steps", [8, 12])
def test_the_last_step_is_computed(name, steps):
    """The last step, where a skip hurts most, is skipped like any other. - cache-dit"""
    tiny = PIPELINES[name]
    for budget in (0.1, BUDGET):
        with dicache.enable(pipe := quiet(tiny.make()), error_budget=budget) as cache:
            tiny.draw(pipe, [1, 2], steps)
        assert all(strip[-1] == "#" for strip in strips(cache))


def test_a_bare_transformer_of_sd3_is_wrapped():
    """Refused for the prefix of its class's name. - cache-dit"""
    model = make_sd3().transformer
    given = {"encoder_hidden_states": embeds([1, 2], 8, 32, salt=1), "pooled_projections": embeds([1, 2], 64, salt=2)}

    def run() -> torch.Tensor:
        x = embeds([1, 2], 4, 8, 8)
        with torch.no_grad():
            for i in range(STEPS):
                x = (
                    x
                    - model(x, timestep=torch.full((2,), 1000 * (1 - i / STEPS)), return_dict=False, **given)[0] / STEPS
                )
        return x

    plain = run()
    with dicache.enable(model, error_budget=BUDGET) as cache:
        assert error(run(), plain) < BUDGET
    assert cache.report().compute_speedup > 1.2


def test_enabling_again_is_enabling():
    """Disable and enable again is fragile. - cache-dit"""
    drawn, pipe = [], quiet(make_flux())
    for _ in range(3):
        with dicache.enable(pipe, error_budget=BUDGET):
            drawn.append(draw_flux(pipe, [1], STEPS))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
