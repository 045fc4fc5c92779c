"""The test of a promise by audits: alarms stay rare however often one looks, and a broken promise is seen soon."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicache.promise import drift as drifts
from dicache.promise.drift import FIRST, SIGNIFICANT, drift, evidence


def missing(rng, runs, *phases):
    """Whether audits miss, (runs, n) bool: of (count, coverage) one after another."""
    return np.concatenate([rng.random((runs, count)) >= coverage for count, coverage in phases], axis=1)


def delays(path, begins):
    """Audits from `begins` on until the alarm, of the runs that raised none before; inf where it never came."""
    alarm = path >= 1 / SIGNIFICANT
    quiet = ~alarm[:, :begins].any(1)
    first = np.where(alarm.any(1), alarm.argmax(1) - begins + 1.0, np.inf)
    return first[quiet]


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_a_promise_that_holds_is_hardly_ever_doubted_in_three_thousand_looks(confidence):
    path = evidence(missing(np.random.default_rng(1), 2000, (3000, confidence)), confidence)
    # At most 1 % ever; with 2,000 runs the share seen lies within .6 % of that (2.8 standard errors).
    assert (path >= 1 / SIGNIFICANT).any(1).mean() <= SIGNIFICANT + 0.006


def test_coverage_of_seven_tenths_is_seen_within_forty_audits():
    path = evidence(missing(np.random.default_rng(2), 2000, (400, 0.7)), 0.9)
    assert np.median(delays(path, 0)) <= 40


def test_a_drift_that_begins_after_two_hundred_good_audits_is_seen_within_ninety():
    path = evidence(missing(np.random.default_rng(3), 2000, (200, 0.9), (500, 0.7)), 0.9)
    assert np.median(delays(path, 200)) <= 90


@given(confidence=st.floats(0.5, 0.99), misses=st.lists(st.booleans(), max_size=12))
def test_no_bet_gains_on_average_while_the_promise_holds(confidence, misses):
    """The expectation of M over the next audit, at the largest chance of a miss that the promise allows, is M."""
    after = [evidence(np.array([[*misses, missed]]), confidence)[0, -1] for missed in (False, True)]
    before = evidence(np.array([misses], bool).reshape(1, -1), confidence)[0, -1] if misses else 1.0
    assert confidence * after[0] + (1 - confidence) * after[1] == pytest.approx(before, rel=1e-9)


def test_the_weights_of_all_starts_add_up_to_one_at_most():
    weights = drifts._starts(200_000)
    assert weights[0] == FIRST and 0.9 < weights.sum() < 1


@given(confidence=st.floats(0.5, 0.99), misses=st.lists(st.booleans(), max_size=40))
def test_a_p_value_is_one_at_most_and_never_rises(confidence, misses):
    looks = [drift(misses[:n], confidence) for n in range(len(misses) + 1)]
    assert all(0 < look.p <= 1 for look in looks)
    assert all(later.p <= earlier.p for earlier, later in itertools.pairwise(looks))


def test_what_was_seen_once_stays_seen():
    told = drift([True] * 12 + [False] * 400, 0.9)
    assert told.seen and told.evidence < told.largest and told.p == 1 / told.largest
    assert drift([], 0.9).p == 1.0 and not drift([], 0.9).seen
