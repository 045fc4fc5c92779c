"""Guidance branches on different ranks, in a loop of one's own: decided as one process decides, or not at all."""

import pytest
import torch
import torch.distributed as dist
from ranks.loops import apart_mixed, called, draw, guided, inputs_of
from ranks.processes import error_of, run

import dicache
from dicache import presets
from dicache.solvers.mixture import made_elsewhere
from pipelines import tiny

STEPS, SAMPLES = 12, (0, 1)


def pipeline():
    pipe = tiny.make_flux()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def facts_of(cache, latents):
    report = cache.report().to_dict()
    return {
        "latents": latents,
        "actions": [sample["actions"] for sample in report["samples"]],
        "warnings": report["warnings"],
    }


def draw_alone():
    pipe = pipeline()
    with torch.no_grad():
        branches, noise = inputs_of(pipe, SAMPLES, STEPS)
        with dicache.enable(pipe, error_budget=0.1) as cache:
            latents = draw(pipe, lambda x, t: guided([called(pipe, each, x, t) for each in branches]), noise, STEPS)
        return facts_of(cache, latents)


def draw_apart(rank):
    def drawn(ranks, config=None):
        pipe = pipeline()
        how = {"config": config} if config else {"error_budget": 0.1}
        with torch.no_grad():
            branches, noise = inputs_of(pipe, SAMPLES, STEPS)
            with dicache.enable(pipe, ranks=ranks, **how) as cache:
                latents = draw(pipe, apart_mixed(pipe, branches[rank], dist.group.WORLD), noise, STEPS)
            return facts_of(cache, latents)

    ranks = dicache.BranchRanks(dist.group.WORLD)
    return {
        "said": drawn(ranks),
        "unsaid": drawn(None),
        "probe": error_of(lambda: drawn(ranks, presets.dicache())),
    }


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    ranks = run(draw_apart, tmp_path_factory.mktemp("apart"))
    assert all(isinstance(rank, dict) for rank in ranks), ranks
    return ranks


def test_branches_apart_are_decided_as_in_one_process(apart):
    one = draw_alone()
    first, second = (rank["said"] for rank in apart)
    assert any(action != "compute" for sample in one["actions"] for step in sample for action in step)
    assert first["actions"] == second["actions"] == one["actions"]
    assert torch.equal(first["latents"], second["latents"])
    assert torch.allclose(first["latents"], one["latents"], atol=1e-5, rtol=1e-5)


def test_branches_apart_of_which_nobody_has_told_compute_everything_and_say_so(apart):
    for rank in apart:
        actions = [action for sample in rank["unsaid"]["actions"] for step in sample for action in step]
        assert set(actions) == {"compute"}
        assert any("dicache.BranchRanks(group)" in warning for warning in rank["unsaid"]["warnings"])


def test_a_probe_sees_one_branch_and_is_refused(apart):
    assert all(rank["probe"].startswith("RanksError: the guidance branches") for rank in apart)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_a_process_mixed_in_is_told_from_rounding_and_from_masks(dtype):
    x, v, other = (torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(k)) for k in range(3))
    x, v, other = (t.to(dtype) for t in (x, v, other))
    solved = 1.0, -0.04
    own = (x.double() - 0.04 * v.double()).to(dtype)
    masked = torch.where(torch.arange(64) < 32, own, x + 1)
    mixed = (x.double() - 0.04 * (other.double() + 3 * (v.double() - other.double()))).to(dtype)
    assert not made_elsewhere(x, own, v, solved) and not made_elsewhere(x, masked, v, solved)
    assert made_elsewhere(x, mixed, v, solved)
