"""Result files: curves and tables read off them, filled point by point, compared with what is drawn again."""

import json

import numpy as np
import pytest

from dicache.bench.arms.arm import Arm, coarse
from dicache.bench.harness.check_again import difference
from dicache.bench.harness.curves import curves, paired_ratio
from dicache.bench.harness.measure import Point
from dicache.bench.harness.store import RESULTS, Store
from dicache.bench.showing import show, tables
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


def test_a_lost_comparison_is_said():
    found = facts(("dicache", "dicache", [(0.9, 0.005), (0.5, 0.05)]), ("rival", "peer", [(0.9, 0.001), (0.4, 0.02)]))
    assert "rival" in tables.losses(found)
    head, peers, *_ = tables.verdict_table(found)
    ratio, name = peers[head.index("at error 0.01")].split(maxsplit=1)
    assert float(ratio) < 1 and name == "(rival)"
    ratio, low, high = paired_ratio(np.array([0.1, 0.2, 0.4]), np.array([0.2, 0.4, 0.9]))
    assert low <= ratio <= high and ratio > 1.9


def test_a_file_without_dicache_or_without_static_schedules_is_shown():
    found = facts(("rival", "peer", [(0.9, 0.001), (0.4, 0.2)]))
    assert "not been drawn" in tables.losses(found) and "rival" in show.text(found)
    (_, *rows) = tables.summary_table([found])
    assert [row[2] for row in rows] == ["-"] * 3 and all("(rival)" in row[3] for row in rows)


def test_what_is_committed_can_be_shown():
    found = show.results(RESULTS)
    assert len(found) == 9 and all("not been drawn" not in show.text(facts) for facts in found.values())


def test_an_interrupted_sweep_keeps_its_points_and_an_arm_drawn_again_loses_them(tmp_path):
    empty = {"pending": [], "points": [], "costs": []}
    store = Store(tmp_path / "file.json", empty)
    assert store.select(["a", "b"]) == ["a", "b"]
    store.add(Point("a", "peer", "k", 1, work=0.5))
    store.done("a", ["a", "b"])
    store.add(Point("b", "peer", "k", 1, work=0.5))
    again = Store(store.path, json.loads(store.path.read_text()))
    assert again.select(["a", "b"]) == ["b"] and [p.value for p in again.points("b")] == [1]
    again.done("b", ["a", "b"])
    assert again.select(["a"]) == ["a"] and not again.points("a") and again.points("b")
    assert coarse([Arm("a", "peer", "k", (1, 2, 3), None)])[0].values == (1, 3)


def test_another_decision_or_another_error_is_a_difference_and_rounding_is_none():
    before = Point("a", "peer", "k", 1, work=0.5, errors=[0.1, 1e-7])
    assert difference(before, Point("a", "peer", "k", 1, work=0.5, errors=[0.10005, 3e-7])) is None
    assert "work" in (difference(before, Point("a", "peer", "k", 1, work=0.51, errors=[0.1, 1e-7])) or "")
    assert "error" in (difference(before, Point("a", "peer", "k", 1, work=0.5, errors=[0.11, 1e-7])) or "")
    assert "failure" in (difference(before, Point("a", "peer", "k", 1, failure="no")) or "")
