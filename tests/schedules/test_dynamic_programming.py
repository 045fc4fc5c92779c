"""CacheQuant's dynamic programming: as good as trying everything, within bounds, with what corrects what is held."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dicache
from dicache.errors import ScheduleError
from dicache.finders import Calibration
from dicache.finders.dynamic_programming import DynamicProgramming, gap_costs, segmentations
from dicache.schedules.action_table import computes
from dicache.sites import Spans
from dicache.types import Action
from helpers.calibrating import STEPS, Captioned
from helpers.fuzzing import examples

PROMPTS = ["prompt 1", "prompt 2"]


@examples(10)
@given(
    seed=st.integers(0, 1000), computed=st.integers(1, 9), bounds=st.sampled_from([(1, None), (2, 4), (1, 3), (3, 10)])
)
def test_it_is_as_good_as_trying_all_segmentations(seed, computed, bounds):
    rng = np.random.default_rng(seed)
    shortest, longest = bounds
    cost = gap_costs(rng.uniform(size=(10, 9)), rng.uniform(size=10), shortest, longest)
    tried = {}
    for inside in itertools.combinations(range(1, 10), computed - 1):
        way = [0, *inside, 10]
        gaps = [j - i for i, j in itertools.pairwise(way)]
        if min(gaps) >= shortest and max(gaps) <= (longest or 10):
            tried[inside] = sum(cost[i, j] for i, j in itertools.pairwise(way))
    ways = segmentations(cost)
    assert (computed in ways) == bool(tried)
    if tried:
        best = ways[computed]
        assert best[0] == pytest.approx(min(tried.values()))
        assert sum(cost[i, j] for i, j in itertools.pairwise([*best[1], 10])) == pytest.approx(best[0])


@pytest.fixture(scope="module")
def search():
    pipe = Captioned()
    calibration = Calibration(PROMPTS, steps=STEPS, batch=2, longest=6)
    affine = dicache.fit(pipe, PROMPTS, steps=STEPS, sites=Spans(), kind="affine", batch=2)
    return pipe, calibration, affine


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_groups_are_within_their_bounds_whatever_is_measured(search, norm):
    pipe, calibration, _ = search
    finder = DynamicProgramming(weighted=False, norm=norm, shortest=2, longest=4)
    for schedule in finder.find(pipe, Spans(), calibration).members:
        for column in computes(schedule.table).T:
            steps = [*np.flatnonzero(column), STEPS]
            assert all(2 <= j - i <= 4 for i, j in itertools.pairwise(steps))


def test_as_published_what_is_held_is_corrected(search):
    """The schedule by dynamic programming, the affine correction of every channel and step."""
    pipe, calibration, affine = search
    finder = DynamicProgramming(weighted=False, norm="l1", shortest=1, longest=4, fitted=affine)
    schedule = finder.find(pipe, Spans(), calibration, cost=0.75)
    skipped = schedule.table[~computes(schedule.table)]
    assert len(skipped) and set(skipped) == {Action.CORRECT} and schedule.work <= 0.75
    with dicache.enable(pipe, schedule=schedule) as cache:
        pipe.draw([1, 2])
    assert cache.report().compute_speedup > 1.2


def test_what_cannot_be_is_one_error(search):
    pipe, calibration, _ = search
    with pytest.raises(ScheduleError, match="needs what corrects"):
        DynamicProgramming(fill=Action.CORRECT)
    with pytest.raises(ScheduleError, match="in order"):
        DynamicProgramming(shortest=3, longest=2)
    with pytest.raises(ScheduleError, match="norm"):
        DynamicProgramming(norm="l3")
    with pytest.raises(ScheduleError, match="no groups of 7 to 7"):
        DynamicProgramming(weighted=False, shortest=7, longest=7).find(pipe, Spans(), calibration)
