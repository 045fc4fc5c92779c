"""The studies, on a small scale and from end to end: interrupted and resumed, merged, checked, shown."""

import argparse
import itertools
import json
from dataclasses import asdict, replace

import pytest
from rich.progress import Progress

from dicache.bench import __main__ as commands
from dicache.bench.arms.ours import BASELINES, DICACHE
from dicache.bench.harness import costs
from dicache.bench.harness.measure import Point
from dicache.bench.models.reference import Setting
from dicache.bench.studies import (
    ablation,
    controls,
    coverage,
    hook_cost,
    mixtures,
    pareto,
    peer_defects,
    schedules,
)


def test_found_schedules_are_written_one_by_one_and_nothing_to_show_is_said(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    schedules.add_arguments(parser)
    out = tmp_path / "new" / "folder"
    with pytest.raises(SystemExit, match="nothing to show"):
        schedules.run(parser.parse_args(["--steps", "4", "--out", str(out), "--show"]))
    row = {"name": "a", "cost": 0.5, "work": 0.5, "calibration": None, "errors": [0.1, 0.2]}
    monkeypatch.setattr(schedules, "Trial", lambda *arguments: None)
    monkeypatch.setattr(schedules, "questions", lambda trial: [(name, lambda: [row]) for name in "ab"])
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
    drawn = []

    class Counting:
        def __init__(self, captions, setting):
            if len(drawn) == 2 and not tmp_path.joinpath("resumed").exists():
                raise KeyboardInterrupt
            drawn.append(setting)

        def point(self, arm, value):
            return Point(arm.name, "dicache", "value", value, work=0.5, errors=[0.1])

    monkeypatch.setattr(ablation, "Comparison", Counting)
    swept = ablation.intervals(0.1)[:2]
    partial = ablation.partial_file(tmp_path / "a.json", swept, ["a"])
    with pytest.raises(KeyboardInterrupt):
        ablation.resumed(swept, ["a"], partial)
    tmp_path.joinpath("resumed").touch()
    found = ablation.resumed(swept, ["a"], partial)
    assert drawn == list(ablation.SETTINGS) and [f["setting"] for f in found] == [asdict(s) for s in drawn]
    assert [point["arm"] for point in found[0]["points"]] == [arm.name for arm in swept for _ in arm.values]
    others = [replace(swept[0], values=(7,)), swept[1]]
    assert partial.exists() and ablation.partial_file(tmp_path / "a.json", others, ["a"]) != partial


def test_captions_and_negative_prompts_do_not_depend_on_how_many_are_drawn():
    case = next(case for case in coverage.CASES if case.negative)
    few, more = coverage.Draws(case, 3), coverage.Draws(case, 5)
    assert (few.captions, few.following) == (more.captions[:3], more.following[:3])
    assert few.following == more.captions[1:4]


def test_dicache_has_none_of_the_peers_defects(run_main, tmp_path):
    assert run_main(peer_defects.main, "--json", tmp_path / "out.json")[0] == 0
    findings = json.loads((tmp_path / "out.json").read_text())
    assert len(findings) >= 4 and not any(finding["dicache_has_it"] for finding in findings)


def test_what_hooks_cost_is_measured_for_every_number_of_rows(run_main, monkeypatch, tmp_path):
    monkeypatch.setattr(hook_cost, "QUICK", ((64, 4), (64, 8)))
    assert run_main(hook_cost.main, "--quick", "--json", tmp_path / "out.json")[0] == 0
    facts = json.loads((tmp_path / "out.json").read_text())
    assert [cost["computed"] for cost in facts["costs"]] == list(hook_cost.COMPUTED)


def test_the_quick_sweep_writes_results_table_and_plot(run_main, monkeypatch, tmp_path):
    baselines = [BASELINES[0], BASELINES[-1]]
    for name, arms in (("DICACHE", DICACHE), ("BASELINES", baselines)):
        monkeypatch.setattr(pareto, name, [replace(arm, values=arm.values[-1:], onward=()) for arm in arms])
    monkeypatch.setattr(costs, "TURNS", 1)
    code, output, errors = run_main(
        commands.main, "pareto", "--quick", "--coarse", "--steps", 6, "--captions", 1, "--out", tmp_path
    )
    assert code == 0, errors
    assert "Where dicache does not win" in output
    (results,) = tmp_path.glob("*.json")
    found = json.loads(results.read_text())
    arms = {arm.name for arm in (*baselines, *DICACHE) if arm.name != "dicache, calibrated"}  # no profile of 6 steps
    failed = [entry for entry in found["points"] if entry["arm"] == "dicache, calibrated"]
    assert failed and all("ProfileError" in entry["failure"] for entry in failed)
    found["points"] = [entry for entry in found["points"] if entry not in failed]
    assert {p["arm"] for p in found["points"]} == {c["arm"] for c in found["costs"]} == arms
    assert all(entry["failure"] is None for entry in (*found["points"], *found["costs"])) and not found["pending"]
    assert results.with_suffix(".png").is_file() and results.with_suffix(".md").is_file()


def test_some_arms_are_drawn_merged_and_checked(run_main, tmp_path):
    def bench(*arguments):
        return run_main(commands.main, *arguments)

    small = ("pareto", "--steps", 5, "--captions", 1, "--coarse", "--no-peers", "--no-costs", "--out", tmp_path)
    assert bench(*small, "--arms", "^fewer steps(, AB2)?$")[0] == 0
    (results,) = tmp_path.glob("*.json")
    before = json.loads(results.read_text())["points"]
    assert bench(*small, "--arms", "order 1$")[0] == 0
    found = json.loads(results.read_text())
    lines = [p for p in found["points"] if p["arm"] == "fixed interval, order 1"]
    assert [p for p in found["points"] if p["arm"].startswith("fewer")] == before and lines
    assert all(len(p["limit"]) == 1 for p in found["points"] if p["failure"] is None)
    code, output, _ = bench(*small, "--arms", "order 1$|fewer steps, AB2$", "--check")
    again = len(lines) + sum(p["arm"] == "fewer steps, AB2" for p in before)
    assert code == 0 and f"{again} points drawn again, 0 differ" in output
    del lines[0]["limit"]
    results.write_text(json.dumps(found))
    assert bench(*small, "--arms", "order 1$", "--limit")[0] == 0
    assert all(len(p["limit"]) == 1 for p in json.loads(results.read_text())["points"])
    lines[-1]["work"] *= 1.01
    results.write_text(json.dumps(found))
    assert bench(*small, "--arms", "order 1$", "--check")[0] == 1
    lines[-1]["limit"] = []
    results.write_text(json.dumps(found))
    code, _, errors = bench(*small, "--arms", "order 1$", "--limit")
    assert code == 1 and "not the same" in errors and "work was" in errors
    code, _, errors = bench(*small[:3], "--captions", 2, *small[5:], "--arms", "order 1$")
    assert code == 1 and "captions" in errors and "--anew" in errors


def test_against_the_package_deepcache_dicache_is_a_third_faster_at_its_errors():
    """By the zoo's committed file; beyond the end of our sweep that end counts."""
    rows = {row.interval: row for row in controls.against_packaged()}
    assert set(rows) == {2, 3, 4, 5}
    for row in rows.values():
        assert row.ours["dicache, speedup"].counted >= 1.3 * row.speedup
    for interval in (2, 3, 4):
        assert rows[interval].ours["dicache"].counted >= 1.3 * rows[interval].speedup


@pytest.mark.parametrize("price", [0.0, 1e-4, 1e-3, 1e-2])
def test_the_best_mixture_is_the_best_of_all_ways_to_skip(monkeypatch, price):
    steps, first = 8, 3
    monkeypatch.setattr(mixtures, "STEPS", steps)
    cells = [(t, g) for g in (1, 2, 3) for t in range(first, steps - g + 1)]
    tables = {
        "whole": {"saves": 0.9, "errors": [(t, g, 0.02 * g**1.5 * (1 + t % 3)) for t, g in cells]},
        "part": {"saves": 0.6, "errors": [(t, g, 0.015 * g * (1 + t % 2)) for t, g in cells]},
    }

    def value(marks):
        cost, age, total = 0.0, 0, 0.0
        for t, mark in enumerate((*marks, "#")):
            if mark == "#":
                cost, age, total = cost + total**2, 0, 0.0
                continue
            age += 1
            if t < first or age > mixtures.LONGEST:
                return float("inf")
            total += mixtures.added(tables[mark], t, age)
        return cost - price * sum(tables[mark]["saves"] for mark in marks if mark != "#")

    least = min(map(value, itertools.product(["#", "whole", "part"], repeat=steps)))
    work, error, marks = mixtures.best(mixtures.stretches(tables, ["whole", "part"]), price)
    assert error**2 - price * (1 - work) * steps == pytest.approx(least, abs=1e-12)
    assert value(marks) == pytest.approx(least, abs=1e-12)
