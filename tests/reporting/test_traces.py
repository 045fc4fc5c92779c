"""What a report reads off a trace, from traces written by hand."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dicache.controllers.base import ProfileUse
from dicache.reporting.promise_note import fits, promise_note
from dicache.reporting.report import Report
from dicache.runtime.trace import Record, Trace, joined
from dicache.types import MARKS, Kind, Reason, Site

ACTIONS = {mark: action for action, mark in MARKS.items()}


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def record(index: int, marks: str, spent: tuple[float, ...] = (), reason: Reason = Reason.WITHIN_BUDGET) -> Record:
    """One step of as many samples as there are words; a mark per site."""
    action = torch.tensor([[ACTIONS[mark] for mark in word] for word in marks.split()])
    rows = len(action)
    unknown = numbers(*[math.inf] * rows)
    errors = numbers(*(spent or [0.0] * rows))
    return Record(index, 1 - index / 10, ("main",), action, torch.full_like(action, reason), unknown, unknown, errors)


def trace(*records: Record, executed: float = 1.0, uncached: float = 2.0, complete: bool = True) -> Trace:
    rows = len(records[0].action) if records else 1
    macs = (numbers(*[executed] * rows), numbers(*[uncached] * rows))
    return Trace(records, *macs, cache_bytes=8, overhead_seconds=0.5, complete=complete, planned_bytes=16)


def use(**facts: object) -> ProfileUse:
    usual = {
        "name": "p",
        "prompts": 60,
        "kind": "named",
        "confidence": 0.9,
        "levels": numbers(0.1),
        "saving": 0.1,
        "smallest": "",
    }
    return ProfileUse(**{**usual, "same_conditions": True, "true_error": lambda error: 2 * error, **facts})


# Decisions.


def test_a_strip_is_a_mark_per_step_and_a_plus_where_sites_part():
    report = Report(trace(record(0, "## ##"), record(1, "== #="), record(2, "// **")), None, [])
    assert [report.strip(0), report.strip(1)] == ["#=/", "#+*"]


def test_a_site_that_was_computed_without_being_stored_is_a_computed_one():
    report = Report(trace(record(0, "#^"), record(1, "^^"), record(2, "^=")), None, [])
    assert report.strip(0) == "#^+"


def test_every_action_and_reason_is_said_by_name():
    marks = "".join(ACTIONS)
    (sample,) = Report(trace(*(record(i, mark) for i, mark in enumerate(marks))), None, []).to_dict()["samples"]
    assert sample["actions"] == [[action.name.lower()] for action in ACTIONS.values()]
    assert sample["reasons"] == [["within_budget"]] * len(marks)


# Numbers.


def test_numbers_that_are_not_known_are_none_in_what_programs_read():
    facts = Report(trace(record(0, "# #")), None, []).to_dict()
    assert facts["steps"][0]["predicted"] == facts["steps"][0]["realised"] == [None, None]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


@given(executed=st.floats(0.1, 10), uncached=st.floats(0.1, 10))
def test_the_speedup_is_what_was_saved_of_all_samples(executed, uncached):
    report = Report(trace(record(0, "# #"), executed=executed, uncached=uncached), None, [])
    facts = report.to_dict()
    assert report.compute_speedup == pytest.approx(uncached / executed)
    assert facts["executed_macs"] == pytest.approx(2 * executed)
    assert facts["samples"][1]["computed_fraction"] == pytest.approx(executed / uncached)


def test_what_executed_nothing_is_no_endless_speedup():
    assert Report(trace(record(0, "#"), executed=0.0, uncached=0.0), None, []).compute_speedup == 1.0


def test_sites_are_listed_with_what_they_cost():
    one = trace(record(0, "##"))._replace(
        sites=(Site("a", Kind.SPAN, ("a",)), Site("b", Kind.SPAN, ("b",))), site_macs=(3.0, 4.0)
    )
    assert [(site["path"], site["macs"]) for site in Report(one, None, []).to_dict()["sites"]] == [("a", 3), ("b", 4)]


# Notes.


def test_a_cache_that_never_engaged_says_what_mostly_kept_it_from_it():
    steps = [record(i, "# #", reason=Reason.TOO_LONG if i else Reason.WARM_UP) for i in range(4)]
    (note,) = (note for note in Report(trace(*steps), None, []).warnings if "engaged" in note)
    assert "mostly too long" in note
    assert not any("engaged" in note for note in Report(trace(*steps, record(4, "= #")), None, []).warnings)


def test_a_run_that_is_not_over_says_so():
    assert any("not over" in note for note in Report(trace(record(0, "#="), complete=False), None, []).warnings)
    assert not any("not over" in note for note in Report(trace(record(0, "#=")), None, []).warnings)


def test_samples_whose_estimate_passed_their_budget_are_named():
    spent = record(0, "= = =", (0.1, 0.3, 0.2))
    report = Report(trace(spent), numbers(0.2, 0.2, 0.2), [])
    assert any("budget of samples [1]" in note for note in report.warnings)
    doubled = Report(trace(spent), numbers(0.2, 0.2, 0.2), [], use())
    assert any("budget of samples [1, 2]" in note for note in doubled.warnings), "a profile says what an estimate means"
    facts = doubled.to_dict()
    table = [sample["estimated_error"] for sample in facts["samples"]]
    assert table == facts["steps"][-1]["estimated_error"] != facts["steps"][-1]["spent"]
    lines = [line.get_ydata() for line in doubled.plot().axes[1].lines]
    assert [float(y[-1]) for y in lines if len(y) == 1] == table, "what is plotted is what the table shows"


def test_an_estimate_without_calibration_says_so_where_something_was_estimated():
    def uncalibrated(spent: float, budget: torch.Tensor | None) -> bool:
        return any(
            "without calibration" in note for note in Report(trace(record(0, "=", (spent,))), budget, []).warnings
        )

    computed = Report(trace(record(0, "#")), numbers(0.1), []).warnings
    assert not any("without calibration" in note for note in computed), "where nothing was skipped nothing is estimated"
    assert uncalibrated(0.1, None) and uncalibrated(0.0, numbers(0.1)) and not uncalibrated(0.0, None)


def test_an_audit_says_how_many_were_within_budget_and_whether_that_is_drift():
    facts = {"samples": 40, "within": 0.75, "errors": [], "drift": True}
    assert any(
        "75.0% within budget; so few" in note for note in Report(trace(record(0, "=")), None, [], None, facts).warnings
    )
    calm = Report(trace(record(0, "=")), None, [], None, {**facts, "drift": False})
    assert any(note.endswith("75.0% within budget.") for note in calm.warnings)
    assert not any(
        "audited" in note for note in Report(trace(record(0, "=")), None, [], None, {**facts, "within": None}).warnings
    )


# The promise.


def test_a_promise_is_said_with_its_confidence_its_prompts_and_its_profile():
    note = promise_note(use())
    assert "confidence 0.9" in note and "profile p" in note and "the 60" in note and fits(use())


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"kind": "nearest"}, "nothing is promised: profile='nearest'"),
        ({"same_conditions": False}, "another negative prompt"),
        ({"confidence": None}, "nothing is promised without confidence"),
    ],
)
def test_what_is_no_promise_is_not_called_one(facts, words):
    note = promise_note(use(**facts))
    assert words in note and not note.startswith("promised")
    assert fits(use(**facts)) == (facts == {"confidence": None})


def test_a_budget_that_no_level_can_vouch_for_was_computed_and_says_so():
    report = Report(trace(record(0, "# #")), numbers(0.001, 0.1), [], use(levels=numbers(0.0, 0.1)))
    assert any("smaller than the profile can vouch for" in note for note in report.warnings)


# Several denoisers in one run.


@given(spent=st.lists(st.floats(0, 1), min_size=1, max_size=4), macs=st.lists(st.floats(1, 9), min_size=4, max_size=4))
def test_traces_of_one_run_add_up_their_work_and_what_they_spent_in_squares(spent, macs):
    parts = [trace(record(i, "=", (error,)), executed=macs[i], uncached=9.0) for i, error in enumerate(spent)]
    run = joined(parts)
    assert [step.index for step in run.records] == [*range(len(spent))]
    assert float(run.records[-1].spent) == pytest.approx(math.hypot(*spent), abs=1e-12)
    assert float(run.executed) == pytest.approx(sum(macs[: len(spent)])) and float(run.uncached) == 9.0 * len(spent)
    assert run.cache_bytes == 8 * len(spent) and run.planned_bytes == 16 * len(spent)


def test_a_run_is_over_when_all_its_traces_are_and_one_trace_is_itself():
    one = trace(record(0, "="))
    assert joined([one]) == one
    assert not joined([one, one._replace(complete=False)]).complete
    assert joined([one, one._replace(planned_bytes=None)]).planned_bytes == 16
    with pytest.raises(ValueError, match="no trace to join"):
        joined([])


@pytest.mark.parametrize("executed", [1.0, 2.0])
def test_a_level_that_saved_nothing_when_it_was_tested_vouches_for_nothing_where_everything_was_computed(executed):
    by = use(levels=numbers(0.01), saving=0.1, smallest="0.0123")
    report = Report(trace(record(0, "#"), executed=executed), numbers(0.001), [], by)
    notes = [note for note in report.warnings if "vouch for" in note]
    assert len(notes) == (executed == 2.0)
    assert all(
        note.endswith("with confidence 0.9: everything was computed there. The smallest that it can is 0.0123.")
        for note in notes
    )
