"""What all controllers share: decisions and their reasons, the account of what was spent, rules around rules."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from dicache.controllers.base import (
    Account,
    Around,
    Controller,
    FinishedRun,
    ProfileUse,
    cost_of,
    decided,
    overruled,
    refused,
)
from dicache.controllers.budgeted import Budgeted
from dicache.controllers.by_kind import ByKind
from dicache.controllers.clip import Clip
from dicache.controllers.counted import Counted
from dicache.controllers.fixed import Fixed, FixedAt, accumulated, every
from dicache.controllers.gap import PerGap
from dicache.controllers.interval import Interval
from dicache.controllers.noise_window import NoiseWindow
from dicache.controllers.planned import ONE_GAP, Planned
from dicache.controllers.threshold import Threshold
from dicache.errors import BudgetError, ModeError
from dicache.types import Action, Decision, Kind, Reason, RunFacts, Site
from helpers.fuzzing import examples
from helpers.stepping import a_quote, a_step, numbers, rows

FLAGS = st.lists(st.booleans(), min_size=3, max_size=3).map(torch.tensor)
COSTS = st.lists(st.one_of(st.floats(0.001, 0.2), st.just(math.inf)), min_size=10, max_size=10)

GAPS = st.lists(st.lists(st.floats(0, 0.2), min_size=1, max_size=3), min_size=1, max_size=4)
"""What each skipped step costs, by the gap it is in."""


def driven(rule, costs, ratio=1.0, total=10, **facts):
    """One sample over a run that costs so much at every step: strip, reasons, what was spent after each."""
    state, strip, reasons, spent = rule.init(1), "", [], []
    for i, cost in enumerate(costs):
        decision, state = rule.decide(a_quote(cost), a_step(i, total, **facts), state)
        computed = decision.action[:, 0] == Action.COMPUTE
        state = rule.settle(numbers(ratio), computed, state)
        strip += "#" if computed.item() else "="
        reasons.append(Reason(int(decision.reason)))
        spent.append(decision.spent.item())
    return strip, reasons, spent


# Decisions.


@given(skip=FLAGS, first=FLAGS, second=FLAGS)
def test_the_last_reason_that_holds_counts_and_none_at_all_is_an_unknown_error(skip, first, second):
    quote = a_quote(0.1, 0.2, 0.3, action=Action.ALIGN)
    reasons = (first, Reason.OVER_BUDGET), (second, Reason.TOO_LONG)
    decision = decided(quote, skip, numbers(0, 0, 0), *reasons, skipped=Reason.PLANNED)
    for action, reason, s, a, b in zip(
        *(t.flatten().tolist() for t in (*decision[:2], skip, first, second)), strict=True
    ):
        assert action == (Action.ALIGN if s else Action.COMPUTE)
        expected = Reason.TOO_LONG if b else Reason.OVER_BUDGET if a else Reason.UNKNOWN
        assert reason == (Reason.PLANNED if s else expected)
    assert decision.action.shape == decision.reason.shape == (3, 1)


@given(skip=FLAGS)
def test_what_is_spent_is_the_quote_of_the_rows_that_skip_and_nothing_that_is_not_known(skip):
    spent = cost_of(a_quote(0.1, math.inf, math.nan), skip).tolist()
    assert spent == [0.1 if skip[0] else 0.0, 0.0, 0.0]


@given(refusal=FLAGS)
def test_rows_that_are_refused_are_unknown_and_the_others_as_they_were(refusal):
    quote = a_quote(0.1, 0.2, 0.3)
    again = refused(quote, refusal)
    assert again.cost.isinf().tolist() == again.error.isinf().tolist() == refusal.tolist()
    assert torch.equal(again.cost[~refusal], quote.cost[~refusal]) and torch.equal(again.action, quote.action)
    assert quote.cost.isfinite().all(), "the quote itself stays"


def test_a_reason_is_overruled_but_for_a_budget_of_nothing():
    reasons = torch.tensor([[Reason.UNKNOWN], [Reason.UNKNOWN], [Reason.NO_BUDGET]])
    before = Decision(torch.zeros(3, 1), reasons, numbers(0, 0, 0))
    after = overruled(before, rows("#=#"), Reason.WARM_UP)
    assert after.reason.flatten().tolist() == [Reason.WARM_UP, Reason.UNKNOWN, Reason.NO_BUDGET]


# The account.


@given(
    gaps=st.lists(st.lists(st.floats(0, 0.2), min_size=1, max_size=3), min_size=1, max_size=4), ratio=st.floats(0, 3)
)
def test_errors_of_one_gap_add_and_those_of_gaps_add_in_squares_by_what_they_turned_out_to_be(gaps, ratio):
    account = Account(numbers(1.0), numbers(0.0), numbers(0.0))
    for gap in gaps:
        for error in gap:
            account = account._replace(pending=account.pending + error)
        account = account.closed(numbers(ratio), rows("="))
        assert account.pending.item() == pytest.approx(sum(gap)), "no step computed: the gap goes on"
        account = account.closed(numbers(ratio), rows("#"))
        assert account.pending.item() == 0.0
    assert account.spent.item() == pytest.approx(math.hypot(*(ratio * sum(gap) for gap in gaps)))


def test_a_gap_of_which_nothing_was_seen_costs_what_was_predicted():
    for ratio in (math.nan, math.inf):
        account = Account(numbers(1.0), numbers(0.09), numbers(0.4)).closed(numbers(ratio), rows("#"))
        assert account.spent.item() == pytest.approx(0.5)


# Rules by themselves.


def test_a_threshold_is_passed_by_errors_below_it_and_another_holds_at_the_start():
    rule = Threshold(0.1, early=0.02, share=0.3)
    strip, reasons, spent = driven(rule, [0.01, 0.02, 0.05, 0.05, 0.1, math.inf])
    assert strip == "=##=##"
    assert reasons[1:3] == [Reason.OVER_THRESHOLD] * 2 and reasons[5] is Reason.UNKNOWN
    assert spent[-1] == pytest.approx(0.06)


@given(costs=COSTS, limit=st.floats(0.01, 0.5))
def test_no_gap_costs_more_than_its_limit_and_every_gap_has_all_of_it(costs, limit):
    strip, reasons, _ = driven(PerGap(limit), costs)
    pending = 0.0
    for mark, cost, reason in zip(strip, costs, reasons, strict=True):
        assert mark == ("=" if pending + cost <= limit else "#")
        assert reason is (Reason.WITHIN_BUDGET if mark == "=" else Reason.OVER_BUDGET if cost < 1 else Reason.UNKNOWN)
        pending = pending + cost if mark == "=" else 0.0


def test_a_gap_that_somebody_else_ended_begins_anew():
    rule = PerGap(0.5)
    _, state = rule.decide(a_quote(0.4, 0.4), a_step(1), rule.init(2))
    state = rule.settle(numbers(1, 1), rows("#="), state)
    decision, _ = rule.decide(a_quote(0.4, 0.4), a_step(2), state)
    assert decision.action.flatten().tolist() == [Action.REUSE, Action.COMPUTE]


@given(interval=st.integers(1, 5), first=st.integers(1, 4))
def test_an_interval_computes_the_first_steps_and_then_every_nth(interval, first):
    strip, reasons, _ = driven(Interval(interval, first), [0.1] * 12, total=12)
    assert strip == "".join("#" if i < first or (i - first + 1) % interval == 0 else "=" for i in range(12))
    assert reasons[:first] == [Reason.WARM_UP] * first and set(reasons[first:]) <= {Reason.SCHEDULED}
    for wrong in ((0, 1), (1, 0)):
        with pytest.raises(ModeError, match="expected 1 or more"):
            Interval(*wrong)


@given(changes=st.lists(st.floats(0, 0.3), min_size=1, max_size=12), threshold=st.floats(0.05, 0.6))
def test_no_value_is_held_over_changes_that_add_up_to_more_than_the_threshold(changes, threshold):
    due = accumulated(changes, threshold)
    assert 0 in due and due <= set(range(len(changes)))
    total = 0.0
    for i, change in enumerate(changes[1:], start=1):
        total += change
        assert (i in due) == (total > threshold)
        total = 0.0 if i in due else total


def test_a_schedule_is_of_so_many_samples_and_of_a_site_that_it_names():
    with pytest.raises(BudgetError, match="for 2 samples but this run has 3"):
        Fixed((frozenset({0}), frozenset({1}))).init(3)
    rule = FixedAt((frozenset({0}),), {"blocks.1": frozenset({0, 2})})
    assert driven(rule.at(Site("blocks.1", Kind.SPAN), 4), [0.1] * 4)[0] == "#=#="
    assert driven(rule.at(Site("blocks.0", Kind.SPAN), 4), [0.1] * 4)[0] == "#==="
    assert driven(every(2, 8, first=0.25, last=2), [0.1] * 8)[0] == "##=#=###"


@examples(10)
@given(costs=COSTS, one_gap=st.floats(0.05, 1.0))
def test_one_gap_never_takes_more_than_its_share_of_the_budget(costs, one_gap):
    strip, _, _ = driven(Budgeted(0.3, one_gap), costs)
    gaps, start = [], 0
    for i, mark in enumerate(strip + "#"):
        if mark == "#":
            gaps.append(sum(costs[start:i]))
            start = i + 1
    assert max(gaps) <= 0.3 * one_gap + 1e-12


@pytest.mark.parametrize("rule", [Budgeted(0.3), Planned(0.3), Budgeted((0.3, 0.4)), Planned((0.3, 0.4))], ids=str)
@given(sites=st.integers(1, 40))
def test_what_sites_may_spend_is_the_budget_in_squares(rule, sites):
    own = numbers(*torch.tensor(rule.at(Site("a", Kind.SPAN), sites).error_budget).reshape(-1).tolist())
    whole = numbers(*torch.tensor(rule.error_budget).reshape(-1).tolist())
    torch.testing.assert_close((sites * own**2).sqrt(), whole, rtol=1e-6, atol=0)


@examples(10)
@given(costs=COSTS)
def test_where_nobody_knows_the_timetable_a_plan_is_the_budget_as_it_is_released(costs):
    assert driven(Planned(0.3), costs) == driven(Budgeted(0.3, ONE_GAP), costs)


# Rules around rules.


class Told(Controller):
    """Remembers what it is asked."""

    error_budget = 0.25

    def __init__(self):
        self.heard = []

    def check(self, step):
        self.heard.append("check")

    def describe(self, state):
        return ProfileUse("told", 1, "named", None, numbers(state), 0.0, "", True, lambda error: error)

    def notes(self, run):
        return [f"{run.steps} missed"]

    def on_other_weights(self, change):
        return f"other weights: {change}"

    def init(self, samples):
        return 7.0

    def decide(self, quote, step, state):
        return decided(quote, quote.cost.isfinite(), quote.cost.nan_to_num(0, 0)), state + 1

    def settle(self, ratio, computed, state):
        return state + 10


def over(work, steps):
    """What is told of a run that is over."""
    return FinishedRun(work, steps, RunFacts(None), (work * steps).round())


@pytest.mark.parametrize("around", [Around, Clip, NoiseWindow], ids=lambda kind: kind.__name__)
def test_a_rule_around_another_says_what_that_one_says(around):
    inner = Told()
    rule = around(inner)
    rule.check(a_step(0))
    assert (
        inner.heard == ["check"]
        and rule.error_budget == 0.25
        and rule.on_other_weights("cast") == "other weights: cast"
    )
    assert rule.notes(over(numbers(1), 5)) == ["5 missed"]
    _, state = rule.decide(a_quote(0.1), a_step(5, total=10), rule.init(1))
    state = rule.settle(numbers(1), rows("#"), state)
    assert rule.describe(state).levels.item() == 18.0, "its state went in and out"
    assert rule.at(Site("a", Kind.SPAN), 3).inner is inner


def test_a_clip_says_why_it_computes_and_a_budget_of_nothing_says_more():
    strip, reasons, _ = driven(Clip(Budgeted(9.0), first=0.2, last=2, longest=3), [0.001] * 10)
    assert strip == "##===#==##"
    assert reasons[0] is reasons[9] is Reason.WARM_UP and reasons[5] is Reason.TOO_LONG
    assert reasons[2] is Reason.WITHIN_BUDGET
    assert set(driven(Clip(Budgeted(0.0), first=0.2), [0.001] * 10)[1]) == {Reason.NO_BUDGET}


def test_sites_of_all_kinds_that_are_decided_together_follow_the_rule_of_the_rest():
    rule = ByKind({Kind.ATTENTION: Interval(2)}, otherwise=Budgeted(0.1))
    assert driven(rule, [0.05] * 10) == driven(Budgeted(0.1), [0.05] * 10)
    assert set(driven(ByKind({}), [0.001] * 5)[0]) == {"#"}, "unless said otherwise all is computed"


def test_a_rule_that_goes_by_nothing_of_the_kind_says_nothing():
    rule = Interval(2)
    assert rule.error_budget is None and rule.describe(rule.init(1)) is None and rule.on_other_weights("cast") is None
    assert rule.notes(over(numbers(1.0), 10)) == [] and rule.at(Site("a", Kind.SPAN), 5) is rule


# So many steps.


@given(speedup=st.floats(1.2, 5.0), steps=st.integers(10, 40))
def test_a_sample_is_late_where_it_executed_a_tenth_more_than_it_was_dealt(speedup, steps):
    dealt = math.ceil(steps / speedup) / steps
    rule = Counted(speedup)
    assert rule.notes(over(numbers(dealt, 1.09 * dealt), steps)) == []
    (note,) = rule.notes(over(numbers(dealt, 1.2 * dealt), steps))
    assert "samples [1] did not reach" in note and f"{speedup:.4g} asked for" in note
    assert f"{1 / (1.2 * dealt):.4g} reached" in note


def test_what_a_counted_run_skipped_is_estimated_like_any_other():
    rule = Counted(2.0)
    strip, reasons, spent = driven(rule, [math.inf, math.inf, *[0.1] * 8], ratio=2.0)
    assert strip == "##==#=#=#=" and set(reasons[2:]) == {Reason.SCHEDULED, Reason.PLANNED}
    skipped = [2, 1, 1]  # steps in the gaps that are over; the last one is still open
    assert spent[-1] == pytest.approx(math.sqrt(sum((2 * 0.1 * gap) ** 2 for gap in skipped) + 0.1**2))
