"""How much is remembered, worked out from the first step, and what is given up under a limit."""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dicache.approximators.hold import Reuse
from dicache.approximators.newton import Newton
from dicache.estimators.closed_loop import ClosedLoop
from dicache.probes.first_blocks import FirstBlocks
from dicache.runtime.memory_plan import MemoryPlan
from helpers.stepping import LINE, Says, a_config, a_run, inside

VALUE = 2 * 4 * 4
"""Bytes of one value of a site: two rows of four numbers."""
SIZES = st.lists(st.tuples(st.integers(1, 9), st.floats(1, 100)), min_size=1, max_size=4)


def planned(config, sites=1, branches=("main",), widths=(4,), macs=None, feature=None, noise=None):
    """The plan after a first step in which every site gave a value, (2, width), in every branch."""
    notes: list[str] = []
    memory, run = MemoryPlan(config, notes.append), a_run(config, sites=sites)
    for state, width in zip(run.states, itertools.cycle(widths), strict=False):
        for branch in branches:
            memory.saw(state, branch, torch.zeros(2, width), feature, noise)
    memory.plan(run, macs or [1.0] * sites)
    return memory, run, notes


def depths(run) -> list[int]:
    return [state.depth for state in run.states]


# Without a limit.


@given(sites=st.integers(1, 4), branches=st.integers(1, 3), order=st.integers(1, 3))
def test_everything_is_remembered_as_deep_as_the_deepest_approximator_reads(sites, branches, order):
    config = inside("##", approximators=(Reuse(), Newton(order)))
    names = [f"branch {i}" for i in range(branches)]
    memory, run, notes = planned(config, sites, names)
    assert memory.planned == sites * branches * (order + 1) * VALUE and notes == []
    assert depths(run) == [order + 1] * sites


def test_a_branch_that_is_called_again_is_counted_once():
    memory, _, _ = planned(a_config("##"), branches=("cond", "cond", "uncond"))
    assert memory.planned == 2 * 2 * VALUE


def test_noise_is_kept_as_deep_as_values_and_features_as_deep_as_they_are_read():
    config = a_config("##", approximators=(Newton(3),), probe=FirstBlocks(1), estimator=Says(()))
    feature, noise = torch.zeros(2, 10), torch.zeros(2, 4)
    memory, _, _ = planned(config, feature=feature, noise=noise)
    assert memory.planned == 4 * 2 * VALUE + 4 * feature.nbytes
    held = a_config("##", approximators=(Reuse(),), probe=FirstBlocks(1), estimator=ClosedLoop(trust=1.0))
    memory, _, _ = planned(held, feature=feature, noise=noise)
    assert memory.planned == 2 * VALUE + 2 * feature.nbytes, (
        "two features for one value: the probe has a line of its own"
    )


def test_what_parts_keep_of_their_own_is_in_the_plan_once():
    class Heavy(Reuse):
        own_bytes = 1000

    class Keeps(Says):
        def own_bytes(self, feature, output, latent):
            return output + latent

    config = inside("##", approximators=(Heavy(),), estimator=Keeps(()))
    memory, run, _ = planned(config, sites=3, branches=("cond", "uncond"))
    assert memory.planned == 1000 + 3 * (2 * VALUE + VALUE + run.latent.nbytes)


def test_a_plan_is_made_once_and_only_of_what_was_seen():
    config = a_config("##")
    memory, run = MemoryPlan(config, pytest.fail), a_run(config)
    memory.plan(run, [1.0])
    assert memory.planned is None and run.states[0].depth is None
    memory.saw(run.states[0], "main", torch.zeros(2, 4), None, None)
    memory.plan(run, [1.0])
    before = memory.planned
    memory.saw(run.states[0], "late", torch.zeros(2, 400), None, None)
    memory.plan(run, [9.0])
    assert memory.planned == before == 2 * VALUE
    memory.begin_run()
    assert memory.planned is None and memory.sizes == {} and memory.seen == set()


def test_histories_begin_empty_and_as_deep_as_is_planned():
    config = a_config("##", probe=FirstBlocks(1))
    memory, run = MemoryPlan(config, pytest.fail), a_run(config)
    assert [len(h.sigmas) for h in memory.nothing(run.states[0], 6)] == [2, 2, 2]
    assert memory.nothing(run.states[0], 6).rows == 6
    limited = MemoryPlan(a_config("##", memory_limit=1), pytest.fail)
    assert [len(h.sigmas) for h in limited.nothing(run.states[0], 6)] == [0, 0, 0], "nothing before the plan"


# Under one.


@given(sizes=SIZES, share=st.floats(0.05, 1.2), order=st.integers(1, 3))
def test_what_is_planned_is_never_more_than_the_limit(sizes, share, order):
    widths, macs = [width for width, _ in sizes], [cost for _, cost in sizes]
    most = (order + 1) * 8 * sum(widths)
    limit = max(1, math.floor(share * most))
    config = inside("##", approximators=(Reuse(), Newton(order)), memory_limit=limit)
    memory, run, notes = planned(config, len(sizes), widths=widths, macs=macs)
    assert memory.planned <= limit
    assert memory.planned == sum(depth * 8 * width for depth, width in zip(depths(run), widths, strict=True))
    assert (notes == []) == (limit >= most)
    assert all(state.histories == {} for state in run.states), "nothing stays of the first step"


@given(sizes=SIZES, share=st.floats(0.05, 0.95))
def test_sites_are_given_up_in_the_order_of_what_they_save_for_a_byte_and_not_before_depth(sizes, share):
    widths, macs = [width for width, _ in sizes], [cost for _, cost in sizes]
    least = 8 * sum(widths)  # one value of every site
    config = inside("##", approximators=LINE, memory_limit=max(1, math.floor(share * 2 * least)))
    memory, run, (note,) = planned(config, len(sizes), widths=widths, macs=macs)
    worth = [cost / (8 * width) for width, cost in zip(widths, macs, strict=True)]
    cached = [w for w, depth in zip(worth, depths(run), strict=True) if depth]
    given_up = [w for w, depth in zip(worth, depths(run), strict=True) if not depth]
    assert set(depths(run)) <= {0, 1}
    assert max(given_up, default=0) <= min(cached, default=math.inf)
    if given_up:  # with the worthiest of them, which went last, it would be too much
        last = max((w, i) for i, (w, depth) in enumerate(zip(worth, depths(run), strict=True)) if not depth)[1]
        assert memory.planned + 8 * widths[last] > config.memory_limit
        assert f"{len(cached)} of {len(sizes)} sites are cached, with 1 exact value each" in note
    else:
        assert "1 of 2 exact values are kept of every site" in note


def test_one_site_less_is_given_up_where_that_is_enough():
    """Three sites of one size: two values each are 192 bytes, one each 96; 80 leave two sites."""
    config = inside("##", approximators=LINE, memory_limit=80)
    memory, run, _ = planned(config, 3, macs=[3.0, 1.0, 2.0])
    assert depths(run) == [1, 0, 1] and memory.planned == 2 * VALUE


def test_orders_between_the_highest_and_the_lowest_are_tried():
    """Four values are too much, and three are not: the next lower order is asked before any site goes."""
    approximators = (Reuse(), Newton(2), Newton(3))
    config = inside("##", approximators=approximators, memory_limit=2 * 3 * VALUE + 8)
    memory, run, (note,) = planned(config, 2)
    assert depths(run) == [3, 3] and memory.planned == 2 * 3 * VALUE and "3 of 4 exact values" in note


def test_a_site_that_is_given_up_forgets_what_its_estimator_learned():
    class Counts(Says):
        def init(self, samples, n_approximators):
            return ("new", samples, n_approximators)

    config = inside("##", estimator=Counts(()), memory_limit=VALUE)
    memory, run = MemoryPlan(config, lambda note: None), a_run(config, sites=2)
    for state in run.states:
        memory.saw(state, "main", torch.zeros(2, 4), None, None)
        state.estimator = "learned"
    memory.plan(run, [2.0, 1.0])
    assert [state.estimator for state in run.states] == ["learned", ("new", 2, 2)]
    assert [memory.depth(state) for state in run.states] == [1, 0]


def test_a_limit_below_anything_caches_nothing_and_keeps_nothing_of_the_parts_own():
    class Heavy(Reuse):
        own_bytes = 1000

    memory, run, (note,) = planned(inside("##", approximators=(Heavy(),), memory_limit=900), 2)
    assert depths(run) == [0, 0] and memory.planned == 0 and "0 of 2 sites" in note
