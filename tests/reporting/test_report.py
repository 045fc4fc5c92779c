"""What a report says, in all its forms."""

import json

import pytest

import dicache
from dicache.approximators.hold import Reuse
from dicache.controllers import Budgeted, ByKind, Clip, Interval, NoiseWindow
from dicache.reporting.page import PARTLY
from dicache.sites import Sublayers
from dicache.types import Kind
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
SAMPLE_KEYS = {"budget", "estimated_error", "computed_fraction", "steps", "actions", "reasons"}


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
    assert repr(report) == f"<dicache.Report: samples 2, steps 8, {report.compute_speedup:.2f}x less computed>"
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
    assert "nothing has run yet." in str(report)
    assert report.to_dict()["samples"] == [] and report.compute_speedup == 1.0
    assert len(report.plot().axes) == 2


@pytest.mark.parametrize("preset", [dicache.presets.dbcache, dicache.presets.teacache, dicache.presets.easycache])
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
