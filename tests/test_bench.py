"""The measuring instrument: curves, schedules, and a small run from end to end."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dicache.bench import show
from dicache.bench.arms import Arm, Setting
from dicache.bench.curves import curves, paired_ratio
from dicache.bench.measure import Judge
from dicache.bench.oracle import anneal, spread
from dicache.bench.ours import BASELINES, DICACHE
from dicache.reference.scenes import prompts


def facts(*arms):
    points = [
        {
            "arm": name,
            "kind": kind,
            "knob": "k",
            "value": i,
            "work": w,
            "errors": [e, 2 * e],
            "failure": None,
            "seconds": 1.0,
        }
        | {"psnr": [30.0], "ssim": [0.9], "attributes": [1.0]}
        for name, kind, points in arms
        for i, (w, e) in enumerate(points)
    ]
    setting = {"steps": 28, "guidance": 3.5, "batch": 8, "shift": 1.0, "solver": "euler"}
    scale = {"discretisation": [0.01], "jaggedness": {"0.5": 1.1}, "uncached_seconds": 2.0, "captions": ["a", "b"]}
    return {"setting": setting, "points": points, **scale}


def test_curves_interpolate_between_points_and_never_beyond_them():
    (curve,) = curves(facts(("ours", "dicache", [(0.5, 0.02), (0.25, 0.08), (0.6, 0.05)])))
    assert curve.speedups.tolist() == [2.0, 4.0], "a point that is worse in both is no part of the curve"
    assert curve.at_speedup(2.0) == pytest.approx([0.02, 0.04])
    assert curve.at_speedup(8**0.5) == pytest.approx([0.04, 0.08])
    assert curve.speedup_at(0.06) == pytest.approx(8**0.5)
    assert curve.at_speedup(4.1) is None and curve.speedup_at(0.2) is None


def test_a_lost_comparison_is_said():
    found = facts(("dicache", "dicache", [(0.9, 0.005), (0.5, 0.05)]), ("rival", "peer", [(0.9, 0.001), (0.4, 0.02)]))
    assert "rival" in show.losses(found)
    head, peers, *_ = show.verdict_table(found)
    ratio, name = peers[head.index("at error 0.01")].split(maxsplit=1)
    assert float(ratio) < 1 and name == "(rival)"
    ratio, low, high = paired_ratio(np.array([0.1, 0.2, 0.4]), np.array([0.2, 0.4, 0.9]))
    assert low <= ratio <= high and ratio > 1.9


def test_annealing_keeps_the_work_and_finds_what_matters():
    start = np.array([spread(4, 10)] * 3)
    wanted = np.array([[1, 1, 0, 0, 0, 0, 0, 0, 1, 1]] * 3, dtype=bool)

    def cost(masks):
        return 0.1 + (masks != wanted).sum(1).astype(float)

    found = anneal(start, cost, trials=300, seed=0, shared=False)
    assert (found.sum(1) == 4).all() and (cost(found) < cost(start)).all()
    together = anneal(start, cost, trials=100, seed=0, shared=True)
    assert (together == together[:1]).all()


def test_an_arm_that_fails_is_in_the_results_with_its_reason_and_one_that_runs_is_counted():
    def refuses(pipe, value, setting):
        raise RuntimeError("needs a UNet")

    judge = Judge(prompts("calibration", 2, seed=5), Setting(steps=8, batch=2))
    assert judge.point(Arm("other", "peer", "k", (1,), refuses), 1).failure == "RuntimeError: needs a UNet"
    half = judge.point(BASELINES[0], 0.5)
    assert half.work == pytest.approx(0.5, abs=1e-3) and len(half.errors) == 2
    ours = judge.point(DICACHE[0], 0.2)
    assert ours.failure is None and ours.work < 1 and max(ours.errors) < 0.5


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


def test_the_quick_sweep_writes_results_table_and_plot(tmp_path):
    command = [sys.executable, "-m", "dicache.bench", "pareto", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Where dicache does not win" in done.stdout
    (results,) = tmp_path.glob("*.json")
    found = json.loads(results.read_text())
    assert {p["arm"] for p in found["points"]} == {arm.name for arm in (*BASELINES, *DICACHE)}
    assert all(p["failure"] is None for p in found["points"])
    assert results.with_suffix(".png").is_file() and results.with_suffix(".md").is_file()
