"""The zoo: a part fills a file, resumes, draws the same again; ratios are what they say; its models are exact."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import dicache
from dicache.bench.arms.arm import Arm
from dicache.bench.models import clips, emoji, emoji_names, exact
from dicache.bench.models.emoji_names import prompts, split_of
from dicache.bench.models.training.emoji_pictures import name_and_tone
from dicache.bench.zoo import sweeps as zoo_sweeps
from dicache.bench.zoo.cells import cells, verdicts
from dicache.bench.zoo.members import Exact, members
from dicache.bench.zoo.model import Setting, counted_macs
from dicache.bench.zoo.sweeps import Sweep, sweeps
from dicache.errors import CaptionError
from dicache.reference.weights import save

needs_sklearn = pytest.mark.skipif(
    Exact("digits", "flow").missing() is not None, reason="scikit-learn is not installed"
)


def facts(points, model="m"):
    entries = [
        {"arm": arm, "kind": kind, "knob": "k", "value": i, "work": work, "errors": errors, "failure": None}
        for i, (arm, kind, work, errors) in enumerate(points)
    ]
    return {"setting": {"model": model, "solver": "s", "steps": 8}, "points": entries}


def test_a_cell_is_the_speedup_over_the_best_rivals_and_the_error_under_it():
    even = [1.0] * 8
    of = lambda level: [level * e for e in even]  # noqa: E731
    found = cells(
        facts(
            [
                *(("dicache", "dicache", w, of(e)) for w, e in ((0.5, 0.01), (0.25, 0.1))),
                *(("fewer steps", "baseline", w, of(e)) for w, e in ((0.5, 0.02), (0.25, 0.1))),
                *(("slow", "baseline", w, of(e)) for w, e in ((0.9, 0.02), (0.6, 0.2))),
            ]
        )
    )
    by = {(c.kind, c.target): c for c in found if c.rivals == "best of everything"}
    assert by["work", 0.5].ratio == pytest.approx(2.0) and by["work", 0.25].ratio == pytest.approx(1.0)
    between = 2 ** (np.log(0.03 / 0.01) / np.log(10)) / 2 ** (np.log(0.03 / 0.02) / np.log(5))
    assert by["error", 0.03].ratio == pytest.approx(between) and by["error", 0.03].best == "fewer steps"
    assert by["error", 0.03].low == pytest.approx(between) == by["error", 0.03].high  # the conditions are all alike
    assert ("work", 0.35) in by and not [c for c in found if c.rivals == "best peer"]
    verdict = next(v for v in verdicts(found) if v.rivals == "best baseline")
    assert verdict.level == 1.0 and verdict.mean == pytest.approx(
        np.exp(np.mean([np.log(c.ratio) for c in by.values()]))
    )


def test_an_interval_holds_what_other_conditions_would_say():
    random = np.random.default_rng(3)
    spread = np.exp(random.normal(0, 0.5, 64))
    found = cells(
        facts(
            [
                *(("dicache", "dicache", w, (e * spread).tolist()) for w, e in ((0.6, 0.01), (0.2, 0.2))),
                *(("fewer steps", "baseline", w, (e * spread[::-1]).tolist()) for w, e in ((0.6, 0.01), (0.2, 0.2))),
            ]
        )
    )
    assert found and all(cell.low < 1 < cell.high for cell in found)


@needs_sklearn
def test_a_posterior_mean_is_that_of_the_density():
    """By drawing from it: x_0 weighed by how likely each makes x_t."""
    net, random = exact.PosteriorMean("digits", "epsilon"), torch.Generator().manual_seed(0)
    time = torch.tensor([700])
    square = DDIMScheduler(**exact.NOISE).alphas_cumprod[700]
    a, s = square.sqrt(), (1 - square).sqrt()
    block = net.blocks[0]
    points = block.points
    x0 = points[torch.randint(len(points), (200_000,), generator=random)]
    x0 = x0 + block.variance**0.5 * torch.randn(x0.shape, generator=random)
    xt = a * points[5] + s * torch.randn(64, generator=random)
    likely = torch.softmax(-(xt - a * x0).square().sum(1) / (2 * s**2), dim=0)
    sampled = likely @ x0
    mean = (xt - s * net(xt.reshape(1, 1, 8, 8), time).flatten()) / a
    assert (mean - sampled).norm() < 0.05 * sampled.norm()
    v = exact.PosteriorMean("digits", "v_prediction")(xt.reshape(1, 1, 8, 8), time).flatten()
    torch.testing.assert_close(v, a * (xt - a * mean) / s - s * mean, atol=1e-4, rtol=1e-4)


@needs_sklearn
def test_a_part_resumes_and_draws_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_sweeps, "CONDITIONS", 6)
    setting = Setting(Exact("digits", "flow"), "euler", 10)
    part = Sweep(setting, main=True, folder=tmp_path, conditions=6, quick=True)
    said = []
    part.draw(said.append)
    points = json.loads(part.path.read_text())["points"]
    assert {"dicache", "dicache, speedup", "fewer steps", "fixed interval, reuse"} <= {p["arm"] for p in points}
    assert all(len(p["errors"]) == len(p["limit"]) == 6 for p in points if p["failure"] is None)
    failed = {p["arm"]: p["failure"] for p in points if p["failure"] is not None}
    assert "has none" in failed["cache-dit DBCache"] and "0.300 is least" in failed["dicache, tuned"]
    assert {p["value"] for p in points if p["arm"] == "dicache, tuned" and p["errors"]} == {2.0}
    again = []
    part.draw(again.append)
    assert said and not again
    drawn = dict(part.check())
    assert len(drawn) == 4 and not any(drawn.values())
    damaged = json.loads(part.path.read_text())
    for point in damaged["points"]:
        point["errors"] = [2 * e + 0.1 for e in point["errors"]]
    part.path.write_text(json.dumps(damaged))
    assert all(dict(part.check()).values())


def test_work_is_counted_below_every_hook_and_put_back():
    net = torch.nn.Linear(8, 8, bias=False)
    with counted_macs([net]) as counted:
        net(torch.ones(3, 8))
    assert counted == [3 * 64] and "forward" not in vars(net)


def test_every_model_has_a_first_setting_and_names_what_is_missing():
    found = members()
    assert len({model.name for model in found}) == len(found) >= 9
    for model in found:
        assert len(model.solvers) * len(model.grids) >= 6
        mains = [part for part in sweeps([model]) if part.main]
        assert len(mains) == 1 and mains[0].setting.solver == model.solvers[0]
        assert not set(model.conditions("test", 8)) & set(model.conditions("calibration", 8))


def test_a_sweep_whose_mildest_value_fails_is_not_gone_on_with(tmp_path, monkeypatch):
    tried = []

    def prepare(target, value, setting):
        tried.append(value)
        raise TypeError("not here")

    monkeypatch.setattr(zoo_sweeps, "arms", lambda setting: [Arm("never", "peer", "k", (1, 2, 3), prepare)])
    part = Sweep(Setting(members()[0], "euler", 2), main=True, folder=tmp_path, conditions=1)
    monkeypatch.setattr(zoo_sweeps.Comparison, "reference", torch.zeros(1))
    monkeypatch.setattr(zoo_sweeps.Comparison, "limit", torch.zeros(1))
    monkeypatch.setattr(zoo_sweeps, "relative_error", lambda a, b: torch.zeros(1))
    monkeypatch.setattr(zoo_sweeps.Comparison, "reference", type("Drawn", (), {"latents": torch.zeros(1)}))
    part.draw(lambda words: None)
    part.draw(lambda words: None)
    assert tried == [1]


def test_names_of_emoji_are_split_read_and_told_from_tones():
    keys = {"waving-hand": 0, "waving-hand-medium-dark": 0, "waving-hand-dark-skin-tone": 0, "traffic-light": 0}
    assert name_and_tone("waving-hand-medium-dark", keys) == ("waving-hand", "medium-dark")
    assert name_and_tone("waving-hand-dark-skin-tone", keys) == ("waving-hand", "dark")
    assert name_and_tone("traffic-light", keys) == ("traffic-light", "")
    captions = prompts("test", 40)
    assert captions == prompts("test", 40) and len(set(captions)) == 40
    assert all(split_of(*caption.split(" ", 1)) == "test" for caption in captions)
    ids = emoji_names.tokenizer()(captions, padding="max_length", return_tensors="pt")
    assert ids.input_ids.shape == (40, emoji_names.LENGTH) and int(ids.attention_mask.sum(1).min()) >= 3
    for wrong, words in (("flat unknownword", "unknownword"), ("flat " + "hand " * 20, "20|21")):
        with pytest.raises(CaptionError, match=words):
            emoji_names.tokenizer()(wrong)
    with pytest.raises(CaptionError, match="captions"):
        prompts("test", 10**6)


def test_emoji_is_of_stock_parts_and_small():
    made, reading = emoji.transformer(), emoji.text_encoder()
    assert 2 * sum(p.numel() for module in (made, reading) for p in module.parameters()) <= 8_000_000
    for solver in emoji.SOLVERS:
        assert emoji.scheduler(solver).config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="Expected one of dpm"):
        emoji.scheduler("heun")


@needs_sklearn
def test_the_command_draws_every_model_quickly_and_writes_the_page(tmp_path):
    command = [sys.executable, "-m", "dicache.bench", "zoo", "--quick", "--models", "exact|scenes$", "--out"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=True)
    page = (tmp_path / "README.md").read_text()
    for words in ("geometric mean", "scenes", "exact digits", "best of everything", "What did not run"):
        assert words in page
    assert "geometric mean" in done.stdout and len(list(tmp_path.glob("*.png"))) >= 3


def test_clips_move_as_their_captions_say_and_are_drawn_by_a_stock_pipeline(tmp_path, monkeypatch):
    clip = next(c for c in clips.clips("train", 0) if len(c.movers) == 1 and "quickly right" in c.caption)
    seen = clips.shown([clip])
    assert seen.shape == (1, 3, 16, 32, 32)
    torch.testing.assert_close(clips.frames(clips.depth(seen)), seen)
    away = (seen - seen[..., :1, :1]).abs().sum(1)[0]  # of the background
    across = (away.sum(1) * torch.arange(32)).sum(1) / away.sum((1, 2))
    assert across[1] > across[0] + 1 and float(across.max()) < 30
    words = {word for caption in clips.prompts("test", 50) for word in caption.replace(",", " ").split()}
    assert words <= set(clips.VOCABULARY)
    modules = {"transformer": clips.transformer(), "text": clips.text_encoder()}
    monkeypatch.setattr(clips, "MODEL", tmp_path / "model.safetensors")
    save(clips.MODEL, modules)
    assert clips.MODEL.stat().st_size <= 6_000_000
    pipe = clips.pipeline(solver="unipc")
    pipe.set_progress_bar_config(disable=True)
    with dicache.enable(pipe, error_budget=0.0):
        drawn = clips.draw(pipe, [clip.caption], 3)
    assert drawn.shape == (1, 12, 16, 16, 16) and torch.equal(drawn, clips.draw(pipe, [clip.caption], 3))
