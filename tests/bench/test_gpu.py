"""The command for a GPU, on the CPU: every line of it runs, and what one part breaks the others do not see."""

import argparse
import json
import time

import pytest
import torch

import dicache
from dicache.bench.gpu import command, sections
from dicache.bench.gpu.arms import due, first_block_changes, rivals
from dicache.bench.gpu.pipelines import TOY, draw, twin


def asked(tmp_path, *more):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--device", "cpu", "--quick", "--out", str(tmp_path), *more])


def around_blocks():
    """The share of the toy's MACs that lies around its blocks."""
    pipe, steps = TOY.pipeline("cpu", torch.float32), 4
    with dicache.enable(pipe, error_budget=0.0) as cache:
        draw(pipe, TOY.arguments(1, "cpu", torch.float32), steps)
    return 1 - steps * cache.trace.site_macs[0] / float(cache.trace.uncached[0])


def test_every_part_writes_what_it_measured(tmp_path):
    shown = [name for name in sections.PARTS if name != "equality"]  # those tests run by themselves
    assert command.run(asked(tmp_path, "--parts", *shown)) == 0
    facts = json.loads((tmp_path / "gpu-cpu-quick.json").read_text())
    assert list(facts) == shown and all(part["rows"] for part in facts.values())
    assert facts["environment"]["rows"][0]["torch"] == torch.__version__
    assert {row["operation"] for row in facts["kernels"]["rows"]} == {"sums", "combine"}
    for name in ("images", "compiled", "offload", "video"):
        rows = [row for row in facts[name]["rows"] if row.get("arm", "").startswith("dicache")]
        assert rows and not [row["failure"] for row in rows if row["failure"]]
        assert all(0 < row["work"] <= 1 and row["wall"] > 0 and row["own"] > 0 for row in rows)
    arms = {row["arm"]: row for row in facts["images"]["rows"] if row["batch"] == 1}
    assert arms["dicache error_budget=0"]["work"] == 1 and arms["dicache error_budget=0"]["error"] == 0
    assert arms["dicache speedup=3"]["work"] < arms["dicache speedup=2"]["work"] < 0.7
    seen = arms["diffusers FirstBlockCache, one step of 2"]["work"], arms["dicache speedup=2"]["work"]
    entered = seen[1] + (1 - seen[1]) * around_blocks()  # the peer enters the denoiser at every step
    assert seen[0] == pytest.approx(entered, abs=0.1)
    again = command.run(asked(tmp_path, "--parts", "environment"))
    assert again == 0 and list(json.loads((tmp_path / "gpu-cpu-quick.json").read_text())) == shown


def never_ends(name, ask, path):
    time.sleep(3600)


def test_a_part_that_breaks_or_is_late_keeps_its_rows_and_the_command_fails(tmp_path, monkeypatch):
    def breaks(ask):
        yield {"a": 1}
        raise ValueError("the device is gone")

    ask = sections.Ask("cpu", True, time.monotonic() + 60)
    monkeypatch.setitem(sections.PARTS, "kernels", (breaks, 60.0))
    command.work("kernels", ask, tmp_path / "kernels.json")
    kept = json.loads((tmp_path / "kernels.json").read_text())
    assert kept == {"rows": [{"a": 1}], "failure": "ValueError: the device is gone"}
    monkeypatch.setattr(command, "work", never_ends)
    assert command.run(asked(tmp_path, "--parts", "images", "environment", "--minutes", "0.001")) == 1
    written = json.loads((tmp_path / "gpu-cpu-quick.json").read_text())
    assert written["images"]["failure"] == "stopped when its time was up"


def test_without_a_device_it_says_so_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = asked(tmp_path / "out")
    args.device = "cuda"
    with pytest.raises(SystemExit, match="--device cpu"):
        command.run(args)
    assert not (tmp_path / "out").exists()


def test_where_no_time_is_left_an_arm_says_so():
    bench = sections.Bench(TOY.pipeline("cpu", torch.float32), TOY, 1, 2, "cpu", 1)
    rows = list(sections.of_arms(sections.Ask("cpu", True, time.monotonic()), bench, rivals(2)))
    assert [row["failure"] for row in rows[1:]] == ["there was no time left"] * len(rivals(2))


def test_a_twin_gives_what_the_pipeline_gives_on_the_same_weights():
    pipe = TOY.pipeline("cpu", torch.float32)
    other, call = twin(pipe), TOY.arguments(1, "cpu", torch.float32)
    with first_block_changes(pipe.transformer) as changes:
        latents = draw(pipe, call, 4)
    assert torch.equal(draw(other, call, 4), latents) and len(changes) == 3 and min(changes) > 0
    assert other.transformer.proj_out.weight is pipe.transformer.proj_out.weight
    assert other.transformer is not pipe.transformer


def test_fixed_arms_compute_the_first_tenth_and_then_one_of_interval():
    assert due(2, 8) == [True, False, True, False, True, False, True, False]
    assert [sum(due(interval, 28)) for interval in (2, 3)] == [15, 11] and all(due(3, 28)[:3])
