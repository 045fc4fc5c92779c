"""Result files: curves and tables read off them, filled point by point, compared with what is drawn again."""

import json

import numpy as np
import pytest

from dicache.bench.arms.arm import Arm, coarse
from dicache.bench.harness.check_again import difference
from dicache.bench.harness.curves import curves, paired_ratio
from dicache.bench.harness.measure import Point
from dicache.bench.harness.store import RESULTS, Store, differences
from dicache.bench.harness.sweep_end import MISSING, next_value
from dicache.bench.showing import pages, show, systems, tables
from dicache.bench.showing.best import RIVALS, Best, ahead, best
from helpers.sweeps import facts


def test_curves_interpolate_between_points_and_never_beyond_them():
    (curve,) = curves(facts(("ours", "dicache", [(0.5, 0.02), (0.25, 0.08), (0.6, 0.05)])))
    assert curve.speedups.tolist() == [2.0, 4.0], "a point that is worse in both is no part of the curve"
    assert curve.at_speedup(2.0) == pytest.approx([0.02, 0.04])
    assert curve.at_speedup(8**0.5) == pytest.approx([0.04, 0.08])
    assert curve.speedup_at(0.06) == pytest.approx(8**0.5)
    assert curve.at_speedup(4.1) is None and curve.speedup_at(0.2) is None


def test_what_skipped_nothing_is_no_point_to_interpolate_from():
    (curve,) = curves(facts(("ours", "dicache", [(1.0, 0.0), (0.5, 0.02), (0.25, 0.08)])))
    assert curve.speedups.tolist() == [2.0, 4.0] and curve.speedup_at(0.001) is None
    (idle,) = curves(facts(("idle", "peer", [(1.0, 0.0)])))
    assert idle.speedup_at(0.01) is None and idle.at_speedup(1.0) is None


def test_a_sweep_that_ends_before_an_error_counts_as_its_last_point_and_one_that_begins_beyond_it_as_nothing():
    swept = facts(("ours", "dicache", [(0.5, 0.02), (0.25, 0.08)]), ("late", "baseline", [(0.2, 0.05), (0.1, 0.2)]))
    ours, late = curves(swept)
    assert (str(ours.reach(0.2)), str(late.reach(0.05)), str(ours.reach(0.03))) == (">= 4.00x", "< 5.00x", "2.00x")
    assert ours.reach(0.2).counted == 4.0 and late.reach(0.05).counted is None
    assert best([ours, late], {"dicache", "baseline"}, 0.2) == Best("late", late.reach(0.2)), "7.39x, for at least 4x"
    assert best([late], {"baseline"}, 0.01) is None and not ahead([ours, late], 3.0, 0.05)
    assert [rival.name for rival in ahead([ours, late], ours.reach(0.2).speedup, 0.2)] == ["late"]
    ended = facts(("ours", "dicache", [(0.5, 0.02), (0.2, 0.2)]), ("short", "peer", [(0.5, 0.03)]))
    assert "end before error 0.1, whose arms may be faster there: 1." in tables.losses(ended)


def test_who_is_best_is_asked_of_all_kinds_alike_but_searched_schedules():
    kinds = ("dicache", "peer", "preset", "baseline", "entrant", "oracle")
    swept = facts(*[(kind, kind, [(0.9, 0.001), (0.5 - 0.05 * i, 0.3)]) for i, kind in enumerate(kinds)])
    drawn = curves(swept)
    assert best(drawn, RIVALS, 0.1).name == "entrant" and len(ahead(drawn, 1.0, 0.1)) == 4
    (_, row, *_) = tables.summary_table([swept])
    assert [cell.partition("(")[2] for cell in row[3:8]] == ["dicache)", "peer)", "preset)", "baseline)", "entrant)"]


def test_the_distance_to_the_limit_is_shown_where_it_was_looked_at():
    swept = facts(("dicache", "dicache", [(0.5, 0.02), (0.25, 0.08)]), ("other", "peer", [(0.5, 0.02)]))
    assert len(tables.limit_table(swept)) == 1
    for point in swept["points"][:2]:
        point["limit"] = [0.005, 2 * point["errors"][1]]
    (_, uncached, ours) = tables.limit_table(swept)
    assert uncached[1] == "0.0100 at 1x" and ours[0] == "dicache"
    assert ours[1] == "0.0425" and ours[-1] == "50%", "one of the two captions is nearer than uncached"


def test_a_lost_comparison_is_said():
    found = facts(("dicache", "dicache", [(0.9, 0.005), (0.5, 0.05)]), ("rival", "peer", [(0.9, 0.001), (0.4, 0.02)]))
    assert "rival" in tables.losses(found) and "rival" in pages.readme_losses(found)
    head, peers, *_ = tables.verdict_table(found)
    ratio, name = peers[head.index("at error 0.01")].split(maxsplit=1)
    assert float(ratio) < 1 and name == "(rival)"
    ratio, low, high = paired_ratio(np.array([0.1, 0.2, 0.4]), np.array([0.2, 0.4, 0.9]))
    assert low <= ratio <= high and ratio > 1.9


def test_a_file_without_dicache_or_without_static_schedules_is_shown():
    found = facts(("rival", "peer", [(0.9, 0.001), (0.4, 0.2)]))
    assert "not been drawn" in tables.losses(found) and "rival" in show.text(found)
    (_, *rows) = tables.summary_table([found])
    assert [row[2] for row in rows] == ["-"] * 3 and all("(rival)" in row[4] for row in rows)


def test_what_is_committed_can_be_shown():
    found = show.results(RESULTS)
    assert len(found) == 9 and all("not been drawn" not in show.text(facts) for facts in found.values())


def test_an_interrupted_sweep_keeps_its_points_and_an_arm_drawn_again_loses_them(tmp_path):
    empty, order = {"pending": [], "points": [], "costs": []}, {"a": (1, 2), "b": (1,)}
    store = Store(tmp_path / "file.json", empty)
    assert store.select(["a", "b"]) == ["a", "b"]
    store.add(Point("a", "peer", "k", 1, work=0.5))
    store.done("a", order)
    store.add(Point("b", "peer", "k", 1, work=0.5))
    again = Store(store.path, json.loads(store.path.read_text()))
    assert again.select(["a", "b"], anew=True) == ["b"] and [p.value for p in again.points("b")] == [1]
    again.done("b", order)
    assert again.select(["a", "c"]) == ["a", "c"] and again.points("a"), "what is there stays"
    assert again.facts["pending"] == ["a", "c"]
    again.done("a", order), again.done("c", order)
    assert again.select(["a"], anew=True) == ["a"] and not again.points("a") and again.points("b")
    assert coarse([Arm("a", "peer", "k", (1, 2, 3), None)])[0].values == (1, 3)


def test_another_decision_or_another_error_is_a_difference_and_rounding_is_none():
    before = Point("a", "peer", "k", 1, work=0.5, errors=[0.1, 1e-7])
    assert difference(before, Point("a", "peer", "k", 1, work=0.5, errors=[0.10005, 3e-7])) is None
    assert "work" in (difference(before, Point("a", "peer", "k", 1, work=0.51, errors=[0.1, 1e-7])) or "")
    assert "error" in (difference(before, Point("a", "peer", "k", 1, work=0.5, errors=[0.11, 1e-7])) or "")
    assert "failure" in (difference(before, Point("a", "peer", "k", 1, failure="no")) or "")


def swept_values(medians, values=(1,), onward=(2, 3, 4)):
    """What is drawn of an arm whose knob gives these median errors, None where it fails."""
    arm, points = Arm("a", "peer", "k", values, None, onward=onward), []
    while (value := next_value(arm, points)) is not MISSING:
        median = medians[value]
        failed = {"failure": "no"} if median is None else {"work": 1 / value, "errors": [median] * 3}
        points.append(Point("a", "peer", "k", value, **failed))
    return [point.value for point in points]


@pytest.mark.parametrize(
    ("medians", "drawn"),
    [
        ({1: 0.01, 2: 0.05, 3: 0.13, 4: 0.2}, [1, 2, 3]),
        ({1: 0.3, 2: 0.4, 3: 0.5, 4: 0.6}, [1]),
        ({1: 0.01, 2: 0.02, 3: 0.03, 4: 0.04}, [1, 2, 3, 4]),
        ({1: 0.01, 2: None, 3: 0.03, 4: 0.04}, [1, 2]),
        ({1: None, 2: None, 3: None, 4: None}, [1]),
    ],
    ids=["until it is past the tables", "not where it is already", "to the end of the knob", "until it fails", "never"],
)
def test_a_sweep_goes_on_until_it_is_at_its_end(medians, drawn):
    assert swept_values(medians) == drawn


def test_a_knob_that_changes_nothing_any_more_is_at_its_end_and_listed_values_are_always_drawn():
    arm = Arm("a", "peer", "k", (1, 2), None, onward=(3, 4))
    same = [Point("a", "peer", "k", value, work=0.5, errors=[0.05]) for value in (1, 2)]
    assert next_value(arm, same) is MISSING and next_value(arm, same[:1]) == 2
    assert next_value(arm, [same[0], Point("a", "peer", "k", 2, work=0.4, errors=[0.06])]) == 3
    assert next_value(arm, [Point("a", "peer", "k", 1, work=0.5, errors=[0.5])]) == 2


def test_a_point_that_was_drawn_again_takes_the_place_of_the_old_one(tmp_path):
    store = Store(tmp_path / "file.json", {"pending": [], "points": [], "costs": []})
    for value in (1, 2):
        store.add(Point("a", "peer", "k", value, work=0.5))
    store.replace(Point("a", "peer", "k", 1, work=0.5, limit=[0.1]))
    assert [(p.value, p.limit) for p in Store(store.path, json.loads(store.path.read_text())).points("a")] == [
        (1, [0.1]),
        (2, []),
    ]


def test_a_version_counts_for_the_arms_that_need_the_package():
    old = {"trials": 0, "versions": {"torch": "1", "cache-dit": "1"}}
    new = {"trials": 0, "versions": {"torch": "1", "cache-dit": None}}
    assert differences(old, new, []) == [] and differences(old, new, ["cache-dit"]) == ["cache-dit (1)"]
    assert differences(old, {"trials": 1, "versions": {"torch": "2"}}, []) == ["trials", "torch (1)"]


def test_every_system_has_a_figure_from_a_run_and_a_test_of_its_equations():
    names, *rows = systems.table()
    assert len(rows) == len(systems.ROWS) and all(len(row) == len(names) for row in rows)
    root = RESULTS.parents[1]
    assert all((root / row.tests).is_file() for row in systems.ROWS if row.name != "DyDiT")
    assert [row.name for row in systems.ROWS if not row.figures] == ["DyDiT"]
    with pytest.raises(LookupError, match="no point of"):
        systems.figure(systems.Preset("nobody's"))
    with pytest.raises(LookupError, match="no row of"):
        systems.figure(systems.Schedule("nobody's"))
