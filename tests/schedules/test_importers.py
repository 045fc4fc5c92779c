"""Schedules that others published."""

import json
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import dicache
from dicache.errors import ScheduleError
from dicache.importers import read_ecad, read_l2c, read_smoothcache
from dicache.importers.l2c import decoded
from dicache.importers.l2c import scores as scores_of
from dicache.importers.published import blocks_of
from dicache.measuring.schedule_measurements import Calibration
from dicache.schedules.action_table import computes
from dicache.sites import Spans, Sublayers
from dicache.types import Kind
from helpers.calibrating import PROMPTS, Captioned

STEPS, BLOCKS = 8, 5


@pytest.fixture(scope="module")
def pipe():
    return Captioned()


@pytest.fixture(scope="module")
def calibration():
    return Calibration(PROMPTS[:1], STEPS, call={"guidance": 4.0})


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def test_smoothcache_names_kinds_and_single_blocks(pipe, calibration, tmp_path):
    attention, feed, third = ([int(t % n == 0) for t in range(STEPS)] for n in (2, 4, 3))
    content = {"attn": attention, "mlp": feed, "attn-1": third}
    plan = read_smoothcache(written(tmp_path / "s.json", content), pipe, Sublayers(), calibration)
    for cell, block, column in zip(plan.basis.cells, blocks_of(plan.basis.cells), computes(plan.table).T, strict=True):
        wanted = feed if cell.kind is Kind.FEED_FORWARD else third if block == 1 else attention
        assert column.tolist() == [bool(v) for v in wanted]
    assert plan.error > 0 and plan.work < 1
    with dicache.enable(pipe, schedule=plan) as cache:
        pipe.draw([0], STEPS)
    assert (cache.trace.executed == plan.macs).all()


def test_half_of_a_published_fifty_steps_compute(tmp_path):
    """The form of 50-N-3-threshold-0.18.json: 24 of 50 steps."""
    pipe, fifty = Captioned(), Calibration(PROMPTS[:1], 50)
    row = [int(t in {0, 49} or (t % 2 == 1 and t < 45)) for t in range(50)]
    plan = read_smoothcache(written(tmp_path / "s.json", {"attn": row, "mlp": row}), pipe, Sublayers(), fifty)
    assert computes(plan.table).sum(0).tolist() == [24] * len(plan.basis.cells)


def test_a_router_is_decoded_by_the_published_rule(pipe, calibration, tmp_path):
    rng = np.random.default_rng(0)
    scores = np.where(rng.uniform(size=(50, 56)) < 0.47, -4.0, 3.0)
    mask = decoded(scores, 0.1)
    skipped = (scores[0:50:2] < 0).sum()
    assert (~mask).sum() == skipped and mask[0::2].all() and (mask[49] == (scores[0] > 0)).all()
    rows = rng.normal(size=(STEPS, 2 * BLOCKS)).astype(np.float32) * 5
    expected = decoded(rows, 0.1)
    named = {f"routers.{i}.prob": torch.from_numpy(row) for i, row in reversed(list(enumerate(rows)))}
    torch.save(named, tmp_path / "r.pt")
    save_file({"scores": torch.from_numpy(rows)}, tmp_path / "r.safetensors")
    for name in ("r.pt", "r.safetensors"):
        plan = read_l2c(tmp_path / name, pipe, Sublayers(), calibration)
        blocks = blocks_of(plan.basis.cells)
        for cell, block, column in zip(plan.basis.cells, blocks, computes(plan.table).T, strict=True):
            assert (column == expected[:, 2 * block + (cell.kind is Kind.FEED_FORWARD)]).all()
    stricter = read_l2c(tmp_path / "r.pt", pipe, Sublayers(), calibration, theta=0.9)
    assert stricter.work < plan.work


def test_parameters_and_very_low_scores_are_scores(pipe, calibration, tmp_path):
    rows = np.random.default_rng(0).normal(size=(STEPS, 2 * BLOCKS)).astype(np.float32) * 1000
    torch.save({f"{i}": torch.nn.Parameter(torch.from_numpy(row)) for i, row in enumerate(rows)}, tmp_path / "p.pt")
    np.testing.assert_array_equal(scores_of(tmp_path / "p.pt"), rows)
    assert (~decoded(rows, 0.1)).sum() == (rows[0:STEPS:2] < 0).sum()


@pytest.mark.filterwarnings("ignore")  # torch's own, of pickles that are none
@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_router_is_one_clear_error_or_finite_scores(tmp_path, old):
    path, rng = tmp_path / "r.pt", random.Random(0)
    tensors = {f"{i}": torch.ones(4) for i in range(STEPS)}
    torch.save(tensors, path, _use_new_zipfile_serialization=not old)
    content = path.read_bytes()
    for _ in range(400):
        broken = bytearray(content)
        for _ in range(rng.choice((1, 3, 20))):
            broken[rng.randrange(min(len(broken), 1200))] = rng.randrange(256)
        path.write_bytes(broken[: rng.choice((None, rng.randrange(len(broken))))])
        try:
            scores = scores_of(path)
        except ScheduleError as error:
            assert str(error).startswith(str(path))
        else:
            assert np.isfinite(scores).all() and scores.ndim == 2


@pytest.mark.parametrize("true_computes", [False, True])
def test_ecad_says_component_by_component_what_is_reused(pipe, calibration, tmp_path, true_computes):
    rng, wanted = np.random.default_rng(1), {}
    content = {str(t): {} for t in reversed(range(STEPS))}
    for t in range(STEPS):
        for b in range(BLOCKS):
            names = ("full_attn", "full_ff", "full_ff_context") if b < 2 else ("single_attn",)
            content[str(t)][str(b)] = {}
            for name in names:
                reused = bool(rng.uniform() < 0.4)
                content[str(t)][str(b)][name] = reused != true_computes
                wanted[t, b, name.split("_", 1)[1]] = t == 0 or not reused
    path = written(tmp_path / "e.json", content)
    plan = read_ecad(path, pipe, Sublayers(), calibration, true_computes=true_computes)
    for site, (cell, block) in enumerate(zip(plan.basis.cells, blocks_of(plan.basis.cells), strict=True)):
        for t in range(STEPS):
            assert computes(plan.table)[t, site] == wanted[t, block, cell.path.rpartition(".")[2]]
    content["3"]["4"]["single_proj_mlp"] = not true_computes
    with pytest.raises(ScheduleError, match="'single_proj_mlp' of block 4, which is no site"):
        read_ecad(written(path, content), pipe, Sublayers(), calibration, true_computes=true_computes)


def test_files_of_another_form_or_size_are_one_clear_error(pipe, calibration, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    path = tmp_path / "f.json"
    for content, message in (
        ({"attn": [1, 0]}, "is for 2 steps"),
        ({"attn": [1, 2] * 4}, "no list of 0 and 1"),
        ({"conv": [1, 0] * 4}, "names none of this model's modules"),
        ({"attn": [1] * STEPS, f"attn-{'9' * 5000}": []}, "is for 0 steps"),
        ({"attn": [1] * STEPS, "attn-12": [1, 0] * 4}, "it has 'attn-12'. This model has 5"),
        ([], "no JSON object"),
    ):
        with pytest.raises(ScheduleError, match=message):
            read_smoothcache(written(path, content), pipe, Sublayers(), calibration)
    for content, message in (
        ({"0": {}}, "is for 1 steps"),
        ({str(t): [] for t in range(STEPS)}, "not of the form"),
        ({str(t): {str(b): {"full_attn": 1} for b in range(5)} for t in range(STEPS)}, "not all true or false"),
        ({str(t): {"0": {}} for t in range(STEPS)}, "has 1 blocks at step 0. This model has 5"),
        ({"9" * 5000: {}} | {str(t): {} for t in range(STEPS - 1)}, "has 0 blocks"),
        ({str(t): {str(b): {} for b in (0, 1, 2, 3, 7)} for t in range(STEPS)}, "with gaps"),
        ({str(3 * t): {str(b): {} for b in range(5)} for t in range(STEPS)}, "with gaps"),
    ):
        with pytest.raises(ScheduleError, match=message):
            read_ecad(written(path, content), pipe, Sublayers(), calibration)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(1 << 26))
    with (tmp_path / "giant.pt").open("wb") as giant:
        giant.truncate(1 << 33)
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    torch.save({"a": torch.zeros(3), "b": torch.zeros(4)}, tmp_path / "odd.pt")
    torch.save({f"{i}": torch.zeros(4) for i in range(STEPS)}, tmp_path / "small.pt")
    kinds = {
        "nan": torch.full((10,), torch.nan),
        "complex": torch.zeros(10, dtype=torch.complex64),
        "sparse": torch.ones(10).to_sparse(),
        "meta": torch.empty(10, device="meta"),
        "expanded": torch.zeros(1).expand(10**9),
    }
    for name, value in kinds.items():
        torch.save({f"{i}": value for i in range(STEPS)}, tmp_path / f"{name}.pt")
    torch.save({f"layer2.{letter}": torch.zeros(10) for letter in "abcdefgh"}, tmp_path / "same.pt")
    for name, message in (
        *((f"{name}.pt", "is no router") for name in (*kinds, "same")),
        ("bomb.pt", "cannot be read as a router"),
        ("zip.pt", "cannot be read as a router: it unpacks to"),
        ("giant.pt", "cannot be read as a router: .* more than"),
        ("odd.pt", "is no router"),
        ("small.pt", "is for 2 blocks. This model has 5"),
        ("nothing.pt", "cannot be read"),
    ):
        with pytest.raises(ScheduleError, match=message):
            read_l2c(tmp_path / name, pipe, Sublayers(), calibration)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ScheduleError, match=r"Use sites=Sublayers\(\)"):
        read_smoothcache(written(path, {"attn": [1] * STEPS}), pipe, Spans(), calibration)
