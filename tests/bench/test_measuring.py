"""The measuring instrument: arms, work, time, memory and waits."""

import numpy as np
import pytest
import torch

from dicache.bench.arms.arm import Arm
from dicache.bench.arms.oracle import heats
from dicache.bench.arms.ours import BASELINES, DICACHE
from dicache.bench.harness import live_bytes
from dicache.bench.harness.costs import Meter, at_half_work
from dicache.bench.harness.host_waits import Syncs
from dicache.bench.harness.measure import Comparison, Point
from dicache.bench.models.reference import Setting, draw_batch, fresh
from dicache.finders.annealing import anneal
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts


def test_annealing_keeps_the_work_and_finds_what_matters():
    start = np.array([[True] * 4 + [False] * 6] * 3)
    wanted = np.array([[1, 1, 0, 0, 0, 0, 0, 0, 1, 1]] * 3, dtype=bool)

    def cost(masks):
        return 0.1 + (masks != wanted).sum(1).astype(float)

    found = anneal(start, cost, heats=heats(300), seed=0, shared=False, first=2)
    assert (found.sum(1) == 4).all() and (cost(found) < cost(start)).all()
    together = anneal(start, cost, heats=heats(100), seed=0, shared=True, first=2)
    assert (together == together[:1]).all()


def test_an_arm_that_fails_is_in_the_results_with_its_reason_and_one_that_runs_is_counted():
    def refuses(pipe, value, setting):
        raise RuntimeError("needs a UNet")

    comparison = Comparison(prompts("calibration", 2, seed=5), Setting(steps=8, batch=2))
    assert comparison.point(Arm("other", "peer", "k", (1,), refuses), 1).failure == "RuntimeError: needs a UNet"
    half = comparison.point(BASELINES[0], 0.5)
    assert half.work == pytest.approx(0.5, abs=1e-3) and len(half.errors) == 2
    ours = comparison.point(DICACHE[0], 0.2)
    assert ours.failure is None and ours.work < 1 and max(ours.errors) < 0.5


@pytest.mark.parametrize("solver", ["euler", "dpm++"])
def test_guidance_in_one_call_gives_the_latents_of_guidance_in_two(solver):
    captions = prompts("calibration", 2, seed=5)
    apart, together = (Setting(steps=6, batch=2, shift=3.0, solver=solver, batched=b) for b in (False, True))
    latents = [draw_batch(fresh(setting), captions, 0, setting) for setting in (apart, together)]
    assert relative_error(latents[1], latents[0]).max() < 3e-5
    assert (apart.calls_per_step, together.calls_per_step) == (2, 1) and apart.name != together.name


def test_waits_are_counted_on_what_is_computed_from_the_device_only():
    weight, here = torch.nn.Parameter(torch.ones(3)), torch.ones(3)
    with torch.no_grad(), Syncs() as syncs:
        assert float(here.sum()) == 3 and bool((here > 0).all()) and syncs.waits == 0
        there = weight * 2
        assert float(there.sum()) == 6 and bool((there > 0).all()) and syncs.names == {"__float__": 1, "__bool__": 1}
        host = there.cpu()
        assert host.tolist() == [2, 2, 2] and syncs.waits == 3, "the copy waits, what follows does not"
        there[there > 1], there[0], here[here > 0]
        assert syncs.names["__getitem__"] == 1
        assert [float(row) for row in there] == [2, 2, 2] and syncs.names["__float__"] == 4


def test_live_bytes_count_a_storage_once_and_no_parameters():
    before = live_bytes.live_bytes()
    kept, weight = torch.zeros(1000), torch.nn.Parameter(torch.zeros(500))
    views = [kept[:10], kept.view(10, 100), weight.detach()]
    assert live_bytes.live_bytes() - before == 4000 and len(views) == 3


def test_the_cost_of_an_arm_is_held_against_the_uncached_pipeline():
    meter = Meter(prompts("calibration", 2, seed=5), Setting(steps=8, batch=2))
    half = meter.cost(BASELINES[0], Point("fewer steps", "baseline", "share", 0.5, work=0.5))
    assert half.failure is None and half.waits == 0 and abs(half.cache_bytes) < 1e4 and half.own_time is None
    ours = meter.cost(DICACHE[0], Point("dicache", "dicache", "error_budget", 0.2, work=0.6))
    assert ours.failure is None and ours.cache_bytes > 1e5 and ours.waits > 0 and ours.own_time > 0
    assert at_half_work([Point("a", "peer", "k", 1, failure="no")]) is None
