"""The measuring instrument: curves, schedules, and a small run from end to end."""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress

from dicache.bench.arms.arm import Arm, coarse
from dicache.bench.arms.oracle import heats
from dicache.bench.arms.ours import BASELINES, DICACHE
from dicache.bench.harness import live_bytes
from dicache.bench.harness.check_again import difference
from dicache.bench.harness.costs import Meter, chosen
from dicache.bench.harness.curves import curves, paired_ratio
from dicache.bench.harness.host_waits import Syncs
from dicache.bench.harness.measure import Comparison, Point
from dicache.bench.harness.store import Store
from dicache.bench.models.reference import Setting, draw_batch, fresh
from dicache.bench.showing import show, tables
from dicache.bench.studies import ablation, coverage, schedules
from dicache.finders.annealing import anneal
from dicache.promise.metrics import relative_error
from dicache.reference.scenes import prompts
from pipelines.sweeps import facts


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


def test_found_schedules_are_kept_whole_and_nothing_to_show_is_said(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    schedules.add_arguments(parser)
    out = tmp_path / "new" / "folder"
    with pytest.raises(SystemExit, match="nothing to show"):
        schedules.run(parser.parse_args(["--steps", "4", "--out", str(out), "--show"]))
    row = {"name": "a", "cost": 0.5, "work": 0.5, "calibration": None, "errors": [0.1, 0.2]}
    monkeypatch.setattr(schedules, "Bench", lambda *given: None)
    monkeypatch.setattr(schedules, "rows", lambda bench, keep: [keep(name, lambda: [row]) for name in "ab"])
    schedules.run(parser.parse_args(["--steps", "4", "--out", str(out), "--rows", "a"]))
    assert json.loads((out / "schedules-4.json").read_text())["measured"] == {"a": [row]}
    assert [path.name for path in out.iterdir()] == ["schedules-4.json"]
    schedules.run(parser.parse_args(["--steps", "4", "--out", str(out)]))
    assert list(json.loads((out / "schedules-4.json").read_text())["measured"]) == ["a", "b"]


def test_coverage_goes_on_with_more_captions_where_the_profile_is_the_same(monkeypatch):
    """As if every caption had been drawn in one go; another profile's lines begin anew."""

    class Few(coverage.Draws):
        drawn = 0

        def draw(self, batch):
            Few.drawn += len(batch)
            return super().draw(batch)

    def measured(n, known=()):
        before = Few.drawn
        (*_, lines) = coverage.measure(case, n, [vars(line) for line in known], Progress(disable=True))
        return lines, Few.drawn - before

    monkeypatch.setattr(coverage, "Draws", Few)
    case = coverage.Case("few", Setting(20, guidance=1.0, batch=2), budgets=(0.1,), speedups=(2.0,))
    first, _ = measured(2)
    more, drawn = measured(4, first)
    whole, alone = measured(4)
    assert (drawn, alone) == (6, 12)  # uncached, within the budget, at the speed-up
    halted = next(iter(coverage.measure(case, 4, [], Progress(disable=True))))
    assert coverage.table([vars(line) for line in halted])[1][1] == "2"
    for a, b in zip(more, whole, strict=True):
        assert a.errors == pytest.approx(b.errors, rel=1e-3) and len(a.work) == len(a.estimates) == 4
        assert a.level == b.level and (a.level > 0) == (a.speedup is None) and a.things == b.things
    (_, row), (_, fast) = (rows([vars(line) for line in whole]) for rows in (coverage.table, coverage.speed_table))
    assert row[1] == fast[1] == "4" and float(row[4]) >= 0.5 and float(fast[3]) == pytest.approx(2.0, rel=0.02)
    first[0].level *= 2
    assert measured(4, first)[1] == 4 + 4 + 2


def test_an_ablation_goes_on_with_the_setting_it_was_killed_in(tmp_path, monkeypatch):
    judged = []

    class Counting:
        def __init__(self, captions, setting):
            if len(judged) == 2 and not tmp_path.joinpath("resumed").exists():
                raise KeyboardInterrupt
            judged.append(setting)

        def point(self, arm, value):
            return Point(arm.name, "dicache", "value", value, work=0.5, errors=[0.1])

    monkeypatch.setattr(ablation, "Comparison", Counting)
    swept = ablation.intervals(0.1)[:2]
    part = ablation.part_of(tmp_path / "a.json", swept, ["a"])
    with pytest.raises(KeyboardInterrupt):
        ablation.resumed(swept, ["a"], part)
    tmp_path.joinpath("resumed").touch()
    found = ablation.resumed(swept, ["a"], part)
    assert judged == list(ablation.SETTINGS) and [f["setting"] for f in found] == [asdict(s) for s in judged]
    assert [point["arm"] for point in found[0]["points"]] == [arm.name for arm in swept for _ in arm.values]
    others = [replace(swept[0], values=(7,)), swept[1]]
    assert part.exists() and ablation.part_of(tmp_path / "a.json", others, ["a"]) != part


def test_captions_and_negative_prompts_do_not_depend_on_how_many_are_drawn():
    case = next(case for case in coverage.CASES if case.negative)
    few, more = coverage.Draws(case, 3), coverage.Draws(case, 5)
    assert (few.captions, few.following) == (more.captions[:3], more.following[:3])
    assert few.following == more.captions[1:4]


def test_a_file_without_dicache_or_without_static_schedules_is_shown():
    found = facts(("rival", "peer", [(0.9, 0.001), (0.4, 0.2)]))
    assert "not been drawn" in tables.losses(found) and "rival" in show.text(found)
    (_, *rows) = tables.summary_table([found])
    assert [row[2] for row in rows] == ["-"] * 3 and all("(rival)" in row[3] for row in rows)


def test_annealing_keeps_the_work_and_finds_what_matters():
    start = np.array([[True] * 4 + [False] * 6] * 3)
    wanted = np.array([[1, 1, 0, 0, 0, 0, 0, 0, 1, 1]] * 3, dtype=bool)

    def cost(masks):
        return 0.1 + (masks != wanted).sum(1).astype(float)

    found = anneal(start, cost, heats=heats(300), seed=0, shared=False, first=2)
    assert (found.sum(1) == 4).all() and (cost(found) < cost(start)).all()
    together = anneal(start, cost, heats=heats(100), seed=0, shared=True, first=2)
    assert (together == together[:1]).all()


def test_an_arm_that_fails_is_in_the_results_with_its_reason_and_one_that_runs_is_counted():
    def refuses(pipe, value, setting):
        raise RuntimeError("needs a UNet")

    judge = Comparison(prompts("calibration", 2, seed=5), Setting(steps=8, batch=2))
    assert judge.point(Arm("other", "peer", "k", (1,), refuses), 1).failure == "RuntimeError: needs a UNet"
    half = judge.point(BASELINES[0], 0.5)
    assert half.work == pytest.approx(0.5, abs=1e-3) and len(half.errors) == 2
    ours = judge.point(DICACHE[0], 0.2)
    assert ours.failure is None and ours.work < 1 and max(ours.errors) < 0.5


@pytest.mark.parametrize("solver", ["euler", "dpm++"])
def test_guidance_in_one_call_gives_the_latents_of_guidance_in_two(solver):
    captions = prompts("calibration", 2, seed=5)
    apart, together = (Setting(steps=6, batch=2, shift=3.0, solver=solver, batched=b) for b in (False, True))
    latents = [draw_batch(fresh(setting), captions, 0, setting) for setting in (apart, together)]
    assert relative_error(latents[1], latents[0]).max() < 3e-5
    assert (apart.calls_per_step, together.calls_per_step) == (2, 1) and apart.name != together.name


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


def test_waits_are_counted_on_what_is_computed_from_the_device_only():
    weight, here = torch.nn.Parameter(torch.ones(3)), torch.ones(3)
    with torch.no_grad(), Syncs() as syncs:
        assert float(here.sum()) == 3 and bool((here > 0).all()) and syncs.waits == 0
        there = weight * 2
        assert float(there.sum()) == 6 and bool((there > 0).all()) and syncs.names == {"__float__": 1, "__bool__": 1}
        host = there.cpu()
        assert host.tolist() == [2, 2, 2] and syncs.waits == 3, "the copy waits, what follows does not"
        there[there > 1], there[0], here[here > 0]
        assert syncs.names["__getitem__"] == 1
        assert [float(row) for row in there] == [2, 2, 2] and syncs.names["__float__"] == 4


def test_live_bytes_count_a_storage_once_and_no_parameters():
    before = live_bytes.live_bytes()
    kept, weight = torch.zeros(1000), torch.nn.Parameter(torch.zeros(500))
    views = [kept[:10], kept.view(10, 100), weight.detach()]
    assert live_bytes.live_bytes() - before == 4000 and len(views) == 3


def test_the_cost_of_an_arm_is_held_against_the_uncached_pipeline():
    meter = Meter(prompts("calibration", 2, seed=5), Setting(steps=8, batch=2))
    half = meter.cost(BASELINES[0], Point("fewer steps", "baseline", "share", 0.5, work=0.5))
    assert half.failure is None and half.waits == 0 and abs(half.cache_bytes) < 1e4 and half.own_time is None
    ours = meter.cost(DICACHE[0], Point("dicache", "dicache", "error_budget", 0.2, work=0.6))
    assert ours.failure is None and ours.cache_bytes > 1e5 and ours.waits > 0 and 0 < ours.own_time < 1
    assert chosen([Point("a", "peer", "k", 1, failure="no")]) is None


@pytest.mark.parametrize("module", ["defects", "micro"])
def test_the_other_measurements_run_and_dicache_has_none_of_the_defects(module, tmp_path):
    out = tmp_path / "out.json"
    arguments = ["--quick"] if module == "micro" else []
    command = [sys.executable, "-W", "ignore", "-m", f"dicache.bench.{module}", *arguments, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    if module == "defects":
        assert len(found) >= 4 and not any(finding["dicache_has_it"] for finding in found)


def bench(*arguments, timeout=600):
    command = [sys.executable, "-m", "dicache.bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def test_the_quick_sweep_writes_results_table_and_plot(tmp_path):
    done = bench("pareto", "--quick", "--coarse", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Where dicache does not win" in done.stdout
    (results,) = tmp_path.glob("*.json")
    found = json.loads(results.read_text())
    arms = {arm.name for arm in (*BASELINES, *DICACHE) if arm.name != "dicache, calibrated"}  # no profile of 12 steps
    failed = [entry for entry in found["points"] if entry["arm"] == "dicache, calibrated"]
    assert failed and all("ProfileError" in entry["failure"] for entry in failed)
    found["points"] = [entry for entry in found["points"] if entry not in failed]
    assert {p["arm"] for p in found["points"]} == {c["arm"] for c in found["costs"]} == arms
    assert all(entry["failure"] is None for entry in (*found["points"], *found["costs"])) and not found["pending"]
    assert results.with_suffix(".png").is_file() and results.with_suffix(".md").is_file()


def test_some_arms_are_drawn_merged_and_checked(tmp_path):
    small = ("pareto", "--steps", 6, "--captions", 2, "--coarse", "--no-peers", "--no-costs", "--out", tmp_path)
    assert bench(*small, "--arms", "^fewer steps").returncode == 0
    (results,) = tmp_path.glob("*.json")
    before = json.loads(results.read_text())["points"]
    assert bench(*small, "--arms", "order 1$").returncode == 0
    found = json.loads(results.read_text())
    assert [p for p in found["points"] if p["arm"].startswith("fewer")] == before and len(found["points"]) == 9
    same = bench(*small, "--arms", "order 1$|fewer steps$", "--check")
    assert same.returncode == 0 and "6 points drawn again, 0 differ" in same.stdout
    found["points"][-1]["work"] *= 1.01
    results.write_text(json.dumps(found))
    assert bench(*small, "--arms", "order 1$", "--check").returncode == 1
    other = bench(*small[:3], "--captions", 3, *small[5:], "--arms", "order 1$")
    assert other.returncode == 1 and "captions" in other.stderr


def test_what_is_committed_can_be_shown():
    found = show.results(Path(show.__file__).parents[1] / "results")
    assert len(found) == 9 and all("not been drawn" not in show.text(facts) for facts in found.values())
