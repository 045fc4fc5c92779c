"""Loops of which the user says everything: planned ahead where that is true, computed with the reason where it is not,
and whatever else the denoiser is called with is computed.
"""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dicache
from helpers.fuzzing import LONG
from pipelines.loops import LOOPS, at, flow_down, noise

STEPS, SAMPLES = 20, 4
GRID = [1000 * 3 * t / (1 + 2 * t) for t in torch.linspace(1, 0, STEPS + 1).tolist()][:-1]
"""Of `flow_down`, as it tells its denoiser."""


def straight(time):
    return 1 - time / 1000, time / 1000


def family(times=GRID, schedule=straight, prediction="flow_prediction"):
    return dicache.Family(
        model="ExactDenoiser", stacks=("blocks",), noise_schedule=schedule, prediction=prediction, times=times
    )


@pytest.fixture(scope="module")
def net():
    return LOOPS["flow down"].make()


@pytest.fixture(scope="module")
def plain(net):
    with torch.no_grad():
        return flow_down(net, noise(range(SAMPLES)), STEPS)


def cached(net, declared, run=flow_down, steps=STEPS):
    with torch.no_grad(), dicache.enable(net, error_budget=0.05, family=declared) as cache:
        return run(net, noise(range(SAMPLES)), steps), cache.report().to_dict()


def test_a_true_declaration_is_planned_and_kept(net, plain):
    got, told = cached(net, family())
    errors = (got - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
    assert told["compute_speedup"] > 1.5 and bool((errors <= 0.1).all()) and told["complete"]


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        (family(prediction="v_prediction"), "not what noise_schedule"),
        (family(prediction="epsilon"), "of which epsilon says nothing"),
        (family(prediction="epsilon", schedule=lambda t: straight(t * 0.999)), "not what noise_schedule"),
        (family(prediction="sample"), "not what noise_schedule"),
        (family(prediction="flow_prediction, reversed"), "not what noise_schedule"),
        (family(schedule=lambda t: straight(t)[::-1]), "not what noise_schedule"),
        (family(schedule=lambda t: straight(t / 2)), "not what noise_schedule"),
        (family(GRID[::2]), "declared times have"),
        (family(GRID[:3]), "declared times have"),
        (family([t + 7 for t in GRID]), "declared times have"),
        (family(torch.linspace(1000, 0, 2 * STEPS + 1).tolist()[:-1]), "declared times have"),
        (family([GRID[0], *GRID]), "declared times have"),
    ],
)
def test_what_is_not_true_computes_and_is_told(net, plain, declared, why):
    got, told = cached(net, declared)
    assert torch.equal(got, plain) and any(why in note for note in told["warnings"])


def test_a_declared_loop_that_tries_its_steps_computes_and_is_told():
    def heun(net, x, steps):
        times = torch.linspace(1, 0, steps + 1).tolist()
        for t, after in pairwise(times):
            at(net, (1 - t, t), (-1.0, 1.0))
            slope = net(x, torch.full((len(x),), 1000 * t))
            if after > 0:
                at(net, (1 - after, after), (-1.0, 1.0))
                slope = (slope + net(x + (after - t) * slope, torch.full((len(x),), 1000 * after))) / 2
            x = x + (after - t) * slope
        return x

    net = LOOPS["flow down"].make()
    with torch.no_grad():
        wanted = heun(net, noise(range(SAMPLES)), STEPS)
    got, told = cached(net, family(torch.linspace(1000, 0, STEPS + 1).tolist()[:-1]), heun)
    assert torch.equal(got, wanted) and any("different latents" in note for note in told["warnings"])


@settings(max_examples=8 * LONG)
@given(time=st.sampled_from([0.0, 3.0, 500.0, 950.0, GRID[0], GRID[-1]]), before=st.integers(0, STEPS))
def test_a_call_beside_the_loop_is_exact_and_the_next_run_is_as_if_it_had_not_been(time, before):
    """`before` of the loop's steps were made when the other call comes; the loop is not gone on with."""
    net, first, other = LOOPS["flow down"].make(), noise(range(SAMPLES)), noise(range(9, 9 + SAMPLES))
    times = torch.full((SAMPLES,), time)
    with torch.no_grad(), dicache.enable(net, error_budget=0.05, family=family()) as cache:
        clean = flow_down(net, first, STEPS)
        part_of_it(net, first, before)
        at(net, (0.5, 0.5), (-1.0, 1.0))
        beside = net(other, times)
        again = flow_down(net, first, STEPS)
        told = cache.report().to_dict()
        cache.disable()
        at(net, (0.5, 0.5), (-1.0, 1.0))
        assert torch.equal(beside, net(other, times)) or (before in (0, 1) and time == GRID[0])
    assert torch.equal(again, clean) and len(told["steps"]) == STEPS and told["complete"]


def part_of_it(net, x, steps):
    for t, after in zip(GRID[:steps], [*GRID[1:], 0.0][:steps], strict=True):
        at(net, straight(t), (-1.0, 1.0))
        x = x + (after - t) / 1000 * net(x, torch.full((len(x),), t))


@pytest.mark.parametrize("time", [2.0, 333.0, GRID[0]])
def test_looks_ahead_inside_the_loop_end_its_plan(net, plain, time):
    def looking(net, x, steps):
        for i, (t, after) in enumerate(zip(GRID, [*GRID[1:], 0.0], strict=True)):
            at(net, straight(t), (-1.0, 1.0))
            if i in (8, 14):
                net(x, torch.full((len(x),), time))
            x = x + (after - t) / 1000 * net(x, torch.full((len(x),), t))
        return x

    with torch.no_grad():
        wanted = looking(net, noise(range(SAMPLES)), STEPS)
    got, told = cached(net, family(), looking)
    errors = (got - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert bool((errors <= 0.05).all()) and any("declared times have" in note for note in told["warnings"])


def test_a_loop_that_is_broken_off_says_so(net):
    with torch.no_grad(), dicache.enable(net, error_budget=0.05, family=family()) as cache:
        part_of_it(net, noise(range(SAMPLES)), 7)
        told = cache.report().to_dict()
    assert not told["complete"] and any("interrupted" in note for note in told["warnings"])
