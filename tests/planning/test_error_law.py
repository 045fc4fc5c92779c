"""Budgets, the law of errors and the plans that it makes, by hand and by brute force."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from dicache.errors import BudgetError
from dicache.planning.budget import per_sample, scaled, shared, validate
from dicache.planning.error_law import (
    DECAY,
    GUIDED,
    REMAINS,
    error_rate,
    error_rates,
    noisy_error_rate,
    remaining,
    surviving_share,
)
from dicache.planning.law_plan import Plan, plan_of
from dicache.types import Timetable
from helpers.stepping import numbers

TIMES = st.floats(-6, 6)
RUNS = st.lists(st.floats(0.1, 0.9), min_size=5, max_size=9)
BUDGETS = st.one_of(st.floats(0, 9), st.lists(st.floats(0, 9), min_size=1, max_size=4))


def a_timetable(ways: list[float], *, random: bool = False, gains: tuple[float, ...] = ()) -> Timetable:
    """Times that lie so far apart, with coefficients that differ."""
    times = tuple(itertools.accumulate([-2.0, *ways]))
    coefficients = tuple(0.05 + 0.01 * (i % 3) for i in range(len(times)))
    return Timetable(tuple(-time for time in times), coefficients, times, 0, random=random, gains=gains)


# Budgets.


@given(budget=BUDGETS)
def test_a_budget_is_the_same_of_numpy_of_torch_and_of_python(budget):
    expected = validate(budget)
    for other in (np.array(budget), torch.tensor(budget, dtype=torch.float64)):
        assert validate(other) == expected
    if isinstance(budget, float):
        assert validate(np.float64(budget)) == budget and per_sample(expected, 3).tolist() == [budget] * 3
    else:
        assert validate(iter(budget)) == tuple(budget)
        with pytest.raises(BudgetError, match=rf"speedup has {len(budget)} entries but this run has 9"):
            per_sample(expected, 9, "speedup")


@pytest.mark.parametrize("wrong", ["0.05", None, object(), [], [0.1, "0.2"], True, [True], -0.1, math.nan, [math.inf]])
def test_what_is_no_budget_is_refused_with_what_was_expected(wrong):
    with pytest.raises(BudgetError, match="Expected"):
        validate(wrong)


@given(budget=BUDGETS, sites=st.integers(1, 50))
def test_shares_of_a_budget_add_up_to_it_in_squares(budget, sites):
    whole = validate(budget)
    own = shared(whole, sites)
    assert isinstance(own, float) == isinstance(whole, float)
    own, entries = (numbers(*(budget if isinstance(budget, tuple) else [budget])) for budget in (own, whole))
    torch.testing.assert_close((sites * own**2).sqrt(), entries, rtol=1e-9, atol=1e-9)
    assert scaled(whole, 2.0) == (2 * whole if isinstance(whole, float) else tuple(2 * entry for entry in whole))


# The law.


def test_the_law_by_hand():
    """At the turn of the curve the tangent is nothing; far off it is 1."""
    assert error_rate(-0.2) == pytest.approx(math.exp(-0.95)) and noisy_error_rate(0.1) == pytest.approx(
        math.exp(-0.45)
    )
    assert error_rate(-50) / error_rate(50) == pytest.approx(math.exp(1.04))
    assert noisy_error_rate(50) / noisy_error_rate(-50) == pytest.approx(math.exp(1.9))
    assert surviving_share(0.0, 1.0) == 0.5 and surviving_share(0.0) == pytest.approx(0.5**DECAY)


@given(earlier=TIMES, later=TIMES)
def test_along_a_run_models_turn_more_slowly_and_less_of_what_they_do_is_forgotten(earlier, later):
    earlier, later = sorted((earlier, later))
    assert error_rate(earlier) >= error_rate(later) and noisy_error_rate(earlier) <= noisy_error_rate(later)
    assert surviving_share(earlier) <= surviving_share(later) <= 1
    assert surviving_share(earlier, 0.0) == 1


@given(guidance=st.floats(0.1, 20))
def test_what_is_left_of_an_error_is_less_under_guidance_up_to_a_scale(guidance):
    left = remaining(numbers(guidance)).item()
    assert left == pytest.approx(REMAINS / min(max(guidance, 1.0), GUIDED))


@given(ways=RUNS, random=st.booleans())
def test_the_rates_of_a_run_are_those_of_its_solver_times_what_an_output_is_worth(ways, random):
    gains = tuple(1 + i / 4 for i in range(len(ways) + 1))
    run = a_timetable(ways, random=random, gains=gains)
    rate = noisy_error_rate if random else error_rate
    assert error_rates(run) == pytest.approx([rate(t) * g for t, g in zip(run.half_log_snrs, gains, strict=True)])
    plain = run._replace(gains=())
    assert error_rates(plain) == pytest.approx([rate(time) for time in plain.half_log_snrs])


# Plans.


@given(ways=RUNS, random=st.booleans(), anchor=st.integers(1, 3), steps=st.integers(1, 3))
def test_a_skipped_step_costs_its_reach_times_the_law_of_its_distance(ways, random, anchor, steps):
    run = a_timetable(ways, random=random)
    plan, times = Plan(run, 8, 1), run.half_log_snrs
    prices = plan.prices(anchor, anchor - 1, steps)
    assert len(prices) == min(steps, len(times) - anchor - 1)
    for q, price in enumerate(prices, start=anchor + 1):
        tau, span = times[q] - times[anchor], times[anchor] - times[anchor - 1]
        law = math.sqrt(tau) if random else tau * (tau + span)
        assert price == pytest.approx(run.coefficients[q] * error_rates(run)[q] * law)
    assert plan.usual(anchor, anchor - 1) == prices[0]


def test_what_costs_nothing_by_the_law_is_not_known():
    run = a_timetable([0.5] * 5)._replace(coefficients=(0.1, 0.1, 0.0, 0.1, 0.1, 0.1))
    assert np.isinf(Plan(run, 8, 1).prices(1, 0, 3)).tolist() == [True, False, False]
    still = run._replace(half_log_snrs=(0.0,) * 6, coefficients=(0.1,) * 6)
    assert np.isinf(Plan(still, 8, 1).prices(1, 0, 3)).all(), "no time passes"


@given(ways=RUNS, longest=st.integers(1, 4), last=st.integers(1, 2), data=st.data())
def test_the_best_way_of_so_many_steps_keeps_to_its_bounds(ways, longest, last, data):
    plan = Plan(a_timetable(ways), longest, last)
    steps = len(ways) + 1
    fewest = plan.fewest()
    computed = data.draw(st.integers(fewest, steps))
    way = plan.way(computed)
    assert len(way) == computed and way == sorted(set(way)) and way[0] == 0 and way[1] == 1
    assert set(range(steps - last, steps)) <= set(way)
    assert all(b - a - 1 <= longest for a, b in itertools.pairwise([*way, steps]))
    assert computed == steps or plan.left_of(way) > 0 or fewest == steps
    assert plan.left_of(list(range(steps))) == 0


@given(ways=RUNS)
def test_more_computed_steps_never_lose_more(ways):
    plan = Plan(a_timetable(ways), 3, 1)
    lost = [plan.lost[1, n] for n in range(1, len(ways) + 1) if math.isfinite(plan.lost[1, n])]
    assert lost == sorted(lost, reverse=True) and lost[-1] == 0.0
    assert plan_of(a_timetable(ways), 3, 1) is plan_of(a_timetable(ways), 3, 1), "each is worked out once"


@given(ways=RUNS, last=st.integers(1, 3))
def test_how_many_steps_may_be_skipped_is_bounded_by_the_rule_and_by_the_end(ways, last):
    plan, steps = Plan(a_timetable(ways), 3, last), len(ways) + 1
    assert [plan.most(i) for i in range(steps + 1)] == [max(0, min(3, steps - last - i)) for i in range(steps + 1)]


@given(ways=RUNS, left=st.floats(0, 1))
def test_no_gap_is_begun_that_costs_more_than_is_left(ways, left):
    plan = Plan(a_timetable(ways), 3, 1)
    assert plan.gap(2, 0, 0.0) == 0 and plan.gap(2, 0, math.inf) == plan.first[1, plan.fewest(0) - 1]
    gap = plan.gap(2, 0, left)
    assert 0 <= gap <= plan.most(2)
    spent = float(plan.prices(1, 0, gap).sum()) ** 2 if gap else 0.0
    assert spent <= left or gap == 0
