"""Evaluations are dealt by how hard samples are: the best there is, none more in all, and as without where nothing is
known.
"""

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import dicache
from dicache.controllers.counted import Counted
from dicache.controllers.dealt import LEAST, MOST, Dealt, deal, left_by
from dicache.defaults import for_speedup
from dicache.types import RunFacts
from helpers.fuzzing import examples
from helpers.toy import TIMETABLE
from pipelines.tiny import PIPELINES, make_flux

FLUX = PIPELINES["two streams and one (flux)"]
STEPS = 12


def test_what_is_dealt_is_the_best_of_all_ways_to_deal_it():
    left = [math.inf, math.inf, 50.0, 40.0, 30.0, 28.0, 27.0, 9.0, 8.0, 7.5, 2.0, 1.0, 0.0]  # falls in jumps
    squares = [1.0, 6.0, 0.2]
    for total in (15, 18, 21):
        counts, even = deal(squares, left, total), total / 3
        fewest, most = max(2, round(LEAST * even)), round(MOST * even)

        def lost(ns, left=left):
            return sum(k * left[n] for k, n in zip(squares, ns, strict=True))

        ways = [w for w in itertools.product(range(fewest, min(most, 12) + 1), repeat=3) if sum(w) == total]
        assert tuple(counts) in ways and lost(counts) == min(map(lost, ways))


@examples(30)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.floats(1.2, 3.5))
def test_all_together_compute_as_many_and_harder_ones_no_fewer(logs, speedup):
    total = round(len(logs) * 24 / speedup)
    left = left_by(Counted(speedup), RunFacts(TIMETABLE), total // len(logs))
    counts = deal([math.exp(2 * x) for x in logs], left, total)
    possible = next(n for n, value in enumerate(left) if math.isfinite(value))
    assert sum(counts) == max(total, possible * len(logs)) and all(math.isfinite(left[n]) for n in counts)
    order = sorted(range(len(logs)), key=lambda b: logs[b])
    assert all(counts[a] <= counts[b] for a, b in itertools.pairwise(order) if logs[a] < logs[b] - 1e-3)


def drawn(hardness, speedup=2.0):
    pipe, seen = make_flux(), []

    def known(facts):
        seen.append(facts)
        return hardness

    config = for_speedup(speedup)
    config = dicache.Config(Dealt(config.controller, known), approximators=config.approximators)
    with dicache.enable(pipe, config=config) as cache:
        out = FLUX.draw(pipe, [1, 2, 3], STEPS)
    actions = torch.stack([record.action[:, 0] for record in cache.trace.records])
    return out, (actions == 0).sum(0).tolist(), cache, seen


def test_a_run_computes_what_was_dealt_and_asks_once():
    plain, even, _, _ = drawn(None)
    out, counts, cache, seen = drawn(torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64))
    assert len(seen) == 1 and sum(counts) == sum(even) == 18
    assert counts[1] > counts[0] >= counts[2] and not torch.equal(out, plain)
    assert not any("speedup" in text for text in cache.report().warnings)


def test_where_nothing_is_known_or_each_has_a_speed_up_of_its_own_nothing_is_moved():
    pipe = make_flux()
    with dicache.enable(pipe, speedup=2.0):
        plain = FLUX.draw(pipe, [1, 2, 3], STEPS)
    assert torch.equal(drawn(None)[0], plain)
    logs = torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64)
    assert torch.equal(drawn(torch.zeros(3, dtype=torch.float64))[0], plain)
    assert drawn(logs, (2.0, 3.0, 2.0))[1] == [6, 4, 6]


@pytest.mark.parametrize("samples", [1])
def test_one_sample_alone_has_nobody_to_deal_with(samples):
    pipe = make_flux()
    config = for_speedup(2.0)
    config = dicache.Config(Dealt(config.controller, lambda facts: 1 / 0), approximators=config.approximators)
    with dicache.enable(pipe, config=config) as cache:
        FLUX.draw(pipe, [1] * samples, STEPS)
    assert cache.report().compute_speedup > 1.5
