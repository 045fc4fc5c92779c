"""What a report says, in all its forms."""

import json
from functools import partial
from pathlib import Path

import pytest

import dicache
from dicache.approximators.hold import Reuse
from dicache.controllers import Budgeted, ByKind, Clip, Interval, NoiseWindow
from dicache.reporting.page import PARTLY, PARTLY_WORDS, WORDS
from dicache.reporting.report import Report
from dicache.sites import Sublayers
from dicache.types import MARKS, Action, Kind, Reason
from pipelines.tiny import draw_flux, make_flux

KEYS = {
    "samples",
    "compute_speedup",
    "branches",
    "warnings",
    "cache_bytes",
    "overhead_seconds",
    "profile",
    "confidence",
}
SAMPLE_KEYS = {"budget", "estimated_error", "true_error", "computed_fraction", "steps", "actions", "reasons"}


@pytest.fixture(scope="module")
def report():
    pipe = make_flux()
    with dicache.enable(pipe, error_budget=[0.2, 0.4]) as cache:
        draw_flux(pipe, [1, 2], 8)
    return cache.report()


def test_a_report_is_plain_numbers_with_all_that_was_promised(report, tmp_path):
    facts = report.to_dict()
    assert set(facts) >= KEYS and all(set(sample) == SAMPLE_KEYS for sample in facts["samples"])
    assert [sample["budget"] for sample in facts["samples"]] == [0.2, 0.4]
    assert all(len(sample["actions"]) == len(sample["reasons"]) == 8 for sample in facts["samples"])
    assert facts["cache_bytes"] > 0 and facts["confidence"] is None
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(facts))


def test_a_report_prints_a_line_per_sample_and_says_that_it_is_uncalibrated(report):
    text = str(report)
    assert report.strip(0) in text and report.strip(1) in text
    assert "without calibration" in text


def test_a_report_says_in_one_line_what_it_is_and_shows_in_a_notebook(report):
    assert (
        repr(report)
        == f"<dicache.Report: samples 2, steps 8, {report.compute_speedup:.2f}x less computed, the cache is off by now>"
    )
    shown = report._repr_html_()
    assert shown.count('class="step" style') >= 16 and "without calibration" in shown and "<img" not in shown


def test_a_cache_says_on_what_it_is_and_what_it_has_done():
    pipe = make_flux()
    cache = dicache.enable(pipe, error_budget=0.2)
    assert repr(cache) == "<dicache.Cache on FluxTransformer2DModel: nothing has run yet>"
    draw_flux(pipe, [1, 2], 8)
    assert "samples 2, steps 8" in str(cache) and "decisions" in cache._repr_html_()
    cache.disable()
    assert "disabled, was on FluxTransformer2DModel" in repr(cache)


def test_a_rule_tells_its_budget_also_from_inside_another():
    assert NoiseWindow(Clip(Budgeted([0.1, 0.2])), low=0.2).error_budget == [0.1, 0.2]
    assert Clip(Interval(2)).error_budget is None


def test_a_report_is_a_figure_and_a_page(report, tmp_path):
    assert len(report.plot().axes) == 2
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="step" style') >= 16 and "within budget" in page


def test_a_page_says_where_there_is_no_budget_and_where_only_some_sites_computed(tmp_path):
    pipe = make_flux()
    config = dicache.Config(ByKind({Kind.ATTENTION: Interval(2)}), approximators=(Reuse(),), sites=Sublayers())
    with dicache.enable(pipe, config=config) as cache:
        draw_flux(pipe, [1], 8)
    report = cache.report()
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "sites computed" in page
    assert page.count(f"background:{PARTLY}") == 1 + report.strip(0).count("+") > 1
    assert page.count("<td>-") == 1


def test_before_any_run_there_is_nothing_to_report():
    with dicache.enable(make_flux(), error_budget=0.1) as cache:
        report = cache.report()
    for told in (str(report), report._repr_html_()):
        assert "nothing has run yet." in told and "x less" not in told and "budget" not in str(report)
    assert report.to_dict()["samples"] == [] and report.compute_speedup == 1.0
    assert len(report.plot().axes) == 2


def test_what_is_not_known_is_none_and_the_report_is_json_at_any_moment():
    pipe, told = make_flux(), []
    with dicache.enable(pipe, error_budget=0.2) as cache:
        told.append(cache.report().to_dict())
        pipe.transformer.register_forward_hook(lambda *_: told.append(cache.report().to_dict()))
        draw_flux(pipe, [1, 2], 4)
    for facts in told:
        json.dumps(facts, allow_nan=False)
    errors = [sample["estimated_error"] for facts in told for sample in facts["samples"]]
    assert told[0]["samples"] == [] and errors[-1] is not None


def test_a_report_and_a_cache_say_whether_the_cache_is_on_and_whether_anything_ran():
    pipe = make_flux()
    cache = dicache.enable(pipe, error_budget=0.1)
    assert "nothing has run yet." in str(cache.report()) and "x less" not in str(cache.report())
    assert "off" not in str(cache.report()) + repr(cache.report()) + repr(cache)
    draw_flux(pipe, [1, 2], 8)
    assert cache.report().headline.startswith("dicache: ") and cache.report().to_dict()["enabled"]
    unused = dicache.enable(make_flux(), error_budget=0.1)
    unused.disable()
    assert "nothing ran before the cache was taken off." in str(unused.report())
    cache.disable()
    draw_flux(pipe, [1, 2, 3], 8)
    for told in (str(cache.report()), cache._repr_html_()):
        assert "dicache (off by now): " in told
    assert not cache.report().to_dict()["enabled"] and len(cache.report().to_dict()["samples"]) == 2


def test_a_figure_counts_samples_and_steps_in_whole_numbers_and_says_what_its_colours_and_lines_are(report):
    above, below = report.plot().axes
    report.plot().canvas.draw()
    ticks = [*above.get_yticks(), *below.get_xticks()]
    assert all(tick == int(tick) for tick in ticks)
    decided = {text.get_text() for text in above.get_legend().get_texts()}
    assert {"computed"} < decided <= {*WORDS.values(), PARTLY_WORDS}
    assert [text.get_text() for text in below.texts] == ["budget 0.2", "budget 0.4"]


def test_a_page_holds_what_ran_on_what_and_speaks_of_decisions_as_the_docs_do(report, tmp_path):
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for fact in ("FluxTransformer2DModel", "FlowMatchEulerDiscreteScheduler", "MACs executed", *WORDS.values()):
        assert fact in page
    marks = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    shown = {action: word for action, word in WORDS.items() if action is not Action.UNSTORED}
    for action, word in shown.items():
        assert f"| `{MARKS[action]}` | {word}" in marks
    assert f"| `+` | {PARTLY_WORDS} |" in marks and all(f"`{reason.name.lower()}`" in marks for reason in Reason)


@pytest.mark.parametrize(("over", "told"), [(False, False), (True, True)])
def test_an_audited_sample_stands_with_its_true_error_and_loudly_where_that_is_over_its_budget(over, told, tmp_path):
    pipe = make_flux()
    plain = draw_flux(pipe, [1, 2], 12)
    with dicache.enable(pipe, error_budget=0.4, audit=1.0) as cache:
        drawn = draw_flux(pipe, [1, 2], 12)
    report = cache.report()
    true = ((drawn - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)).tolist()
    if over:  # a budget that the run did not keep
        report = Report(report.trace, report.budget * 0 + 1e-6, [], None, report.audit, report.true_errors)
    assert [sample["true_error"] for sample in report.to_dict()["samples"]] == pytest.approx(true, rel=0.02)
    report.save_html(tmp_path / "report.html")
    for text in (str(report), (tmp_path / "report.html").read_text()):
        assert "true error" in text and f"{report.true_errors[1]:.4f}" in text
        assert ("OVER BUDGET" in text) == told
    with dicache.enable(pipe, error_budget=0.4) as cache:
        draw_flux(pipe, [1], 8)
    assert "true error" not in str(cache.report())


def test_audits_of_an_earlier_run_are_not_put_beside_the_samples_of_the_next():
    pipe = make_flux()
    with dicache.enable(pipe, error_budget=0.4, audit=1.0) as cache:
        draw_flux(pipe, [1, 2], 8)
        draw_flux(pipe, [3, 4], 8)
        assert set(cache.report().true_errors) == {0, 1}
        interrupted(pipe, 4)
        assert cache.report().true_errors == {}


def interrupted(pipe, at):
    def stop(pipe, index, timestep, kwargs):
        if index == at:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        draw_flux(pipe, [1, 2], 8, callback_on_step_end=stop)


@pytest.mark.parametrize(
    ("steps", "budget", "told"), [(8, 50.0, True), (12, 50.0, True), (12, 0.001, False), (3, 0.5, True)]
)
def test_a_budget_that_cannot_be_spent_in_so_few_steps_is_said_to_be_so(steps, budget, told):
    pipe = make_flux()
    with dicache.enable(pipe, error_budget=budget) as cache:
        draw_flux(pipe, [1, 2], steps)
    said = [note for note in cache.report().warnings if "no more can be skipped" in note]
    assert bool(said) == told, (cache.report().strip(0), cache.report().warnings)
    with dicache.enable(pipe, error_budget=0.0) as cache:
        draw_flux(pipe, [1, 2], steps)
    assert not any("no more can be" in note for note in cache.report().warnings)


@pytest.mark.parametrize(
    "preset", [partial(dicache.presets.dbcache, front=1), dicache.presets.teacache, dicache.presets.easycache]
)
def test_a_rule_that_goes_by_a_threshold_names_it_where_nothing_was_skipped(preset):
    pipe, said = make_flux(), []
    for threshold in (1e-9, 1e9):
        with dicache.enable(pipe, config=preset(threshold)) as cache:
            draw_flux(pipe, [1], 8)
        said.append(cache.report().warnings)
    assert [w for w in said[0] if "threshold=1e-09" in w] and [
        w for w in said[0] if "never engaged; mostly over thr" in w
    ]
    assert not [w for w in said[1] if "threshold" in w] and not [w for w in said[0] if "budget" in w]
