"""What ranks cannot agree on is an error that says so, on each of them; nobody waits for ever, nobody draws on."""

import os

import pytest
import torch
import torch.distributed as dist
from ranks.processes import SAMPLES, error_of, part_tokens, run

import dicache
from dicache import presets
from dicache.approximators.hold import Reuse
from dicache.controllers.planned import Planned
from dicache.controllers.with_gains import WithGains
from dicache.errors import ModeError
from dicache.planning.gains import Gains
from dicache.sites import Spans, Tokens
from pipelines import tiny


def pipeline():
    pipe = tiny.make_flux()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_of(samples=SAMPLES, config=None, **kwargs):
    """Enabled on parted tokens, and drawn."""
    pipe = pipeline()
    part_tokens(pipe)
    with torch.no_grad(), dicache.enable(pipe, config=config or presets.dicache()):
        tiny.draw_flux(pipe, samples, 6, **kwargs)


class Unsaid(Reuse):
    over_ranks = False


REFUSED = {
    "SpectrumFiltered": lambda: presets.seacache(),
    "ComputedChange": lambda: presets.bwcache(),
    "Unsaid": lambda: dicache.Config(WithGains(Planned(0.1), Gains()), approximators=(Unsaid(),), sites=Spans()),
    "memory_limit": lambda: dicache.Config(WithGains(Planned(0.1), Gains()), sites=Spans(), memory_limit=1000),
}


def disagree(rank):
    def late(config):
        pipe = pipeline()
        with torch.no_grad(), dicache.enable(pipe, config=config):
            part_tokens(pipe)
            tiny.draw_flux(pipe, SAMPLES, 6)

    tokens = dicache.Config(Planned(0.1), sites=Tokens())
    return {
        "tokens": error_of(lambda: dicache.enable(tiny.make_pixart(), config=tokens, ranks=dist.group.WORLD)),
        "seeds": error_of(lambda: run_of([0, 1 + rank])),
        "thresholds": error_of(lambda: run_of(config=presets.dicache(0.4 + rank))),
        **{name: error_of(lambda make=make: run_of(config=make())) for name, make in REFUSED.items()},
        "parted later": error_of(lambda: late(presets.bwcache())),
    }


def lose_one(rank):
    def leave(pipe, step, time, kwargs):
        if rank == 1 and step == 3:
            os._exit(0)
        return kwargs

    return error_of(lambda: run_of(callback_on_step_end=leave))


def draw_apart(rank):
    """Each rank has samples of its own."""
    pipe = pipeline()
    with torch.no_grad(), dicache.enable(pipe, config=presets.dicache()):
        return tiny.draw_flux(pipe, [rank], 6)


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    return run(disagree, tmp_path_factory.mktemp("disagree"))


@pytest.mark.parametrize(("what", "named"), [("seeds", "latents"), ("thresholds", "arguments of dicache.enable")])
def test_ranks_that_begin_different_runs_are_told_what_differs(errors, what, named):
    for rank in errors:
        assert rank[what].startswith("RanksError") and f"different things: {named}." in rank[what]


@pytest.mark.parametrize("name", REFUSED)
def test_a_part_that_cannot_decide_over_ranks_is_refused_by_name(errors, name):
    for rank in errors:
        assert rank[name].startswith("RanksError: the tokens of a sample lie on 2 ranks") and name in rank[name]


def test_tokens_are_not_chosen_among_those_of_one_rank(errors):
    assert all("sites=Tokens() chooses among those of one rank" in rank["tokens"] for rank in errors)


def test_it_is_refused_at_the_first_call_where_tokens_are_parted_later(errors):
    assert all("ComputedChange" in rank["parted later"] for rank in errors)


def test_a_lost_rank_is_an_error(tmp_path):
    left, lost = run(lose_one, tmp_path)
    assert left.startswith("RanksError") and lost is None


def test_ranks_with_samples_of_their_own_do_not_wait_for_each_other(tmp_path):
    ranks = run(draw_apart, tmp_path)
    assert all(torch.equal(latents, draw_apart(rank)) for rank, latents in enumerate(ranks))


def test_what_is_no_process_group_is_refused():
    with pytest.raises(ModeError, match=r"dist\.group\.WORLD"):
        dicache.enable(pipeline(), error_budget=0.1, ranks=2)
    assert not dist.is_initialized()
