"""A calibration as a user makes it, tested on other captions: the study goes on where it was and says what was said."""

import json

import pytest

from dicache.bench.models import scenes_unet
from dicache.bench.showing.first_profile_tables import said_in_words, shown, table
from dicache.bench.studies import first_profile
from dicache.bench.studies.first_profile import Setting, measure, wanted_of
from dicache.bench.zoo.members import ScenesUnet
from dicache.errors import BudgetError
from dicache.promise.metrics import Psnr, Ssim
from dicache.types import LATENT, Wanted

pytestmark = pytest.mark.skipif(not scenes_unet.MODEL.exists(), reason="weights are in the repository only")


def test_budgets_are_named_as_the_command_takes_them():
    assert wanted_of("psnr=30") == Psnr(30) and wanted_of("ssim=0.92") == Ssim(0.92)
    assert wanted_of("latent=0.05") == Wanted(LATENT, 0.05)
    for wrong in ("psnr", "lpips=1", "=3", "psnr=x"):
        with pytest.raises(ValueError):
            wanted_of(wrong)
    with pytest.raises(BudgetError):
        wanted_of("psnr=inf")


def test_a_first_profile_is_tested_goes_on_with_more_captions_and_its_forecast_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(first_profile, "BATCH", 2)
    setting, out = Setting(ScenesUnet(), "ddim", 6, 12, 0.8), tmp_path / "new" / "a.json"
    budgets = [Wanted(LATENT, 0.1), Psnr(20)]
    measure(setting, budgets, 2, tmp_path / "checkpoint", out)
    first = json.loads(out.read_text())
    said = first["said"]
    assert said["samples"] == said["drawn"] == 19 * 12 - 16 and said["seconds"] > 0 and not said["resumed"]
    assert all(0 < share < 1.5 for share in said["busy"]), "one thread, of one processor or less"
    assert [len(line["losses"]) for line in first["lines"]] == [2, 2]
    assert all(line["losses"][0] <= line["bound"] * (1 if line["bound"] > 0 else 0.5) for line in first["lines"])

    drawn = []
    monkeypatch.setattr(first_profile.Drawer, "draw", _counting(first_profile.Drawer.draw, drawn))
    measure(setting, [*budgets, Ssim(0.5)], 4, tmp_path / "checkpoint", out)
    more = json.loads(out.read_text())
    assert more["said"] == said and [len(line["losses"]) for line in more["lines"]] == [4, 4, 4]
    assert [line["losses"][:2] for line in more["lines"][:2]] == [line["losses"] for line in first["lines"]]
    other = Setting(ScenesUnet(), "ddim", 6, 12, 0.9)
    measure(other, [], 0, tmp_path / "checkpoint", other_out := tmp_path / "other.json")
    resumed = json.loads(other_out.read_text())["said"]
    assert resumed["resumed"] and resumed["samples"] == resumed["drawn"] == 0
    levels = {line["level"] for line in more["lines"]}
    assert 4 + 2 * len(levels) >= len(drawn), "budgets of one internal budget are drawn once, and the old ones are kept"
    assert "took 212 samples" in said_in_words(more) and "scenes-unet, ddim, 6 steps" in shown(out.parent)


def _counting(draw, drawn):
    def counted(drawer, indices):
        drawn.append(list(indices))
        return draw(drawer, indices)

    return counted


def test_a_promise_that_is_not_kept_is_called_so():
    line = {"metric": LATENT, "bound": 0.1, "level": 0.02, "losses": [0.05] * 30 + [0.2] * 20, "work": [0.5] * 50}
    said = {"samples": 10, "seconds": 2.0, "drawn": 10, "took": 3.0, "resumed": False}
    facts = {"setting": "a", "prompts": 64, "confidence": 0.9, "said": said, "lines": [line]}
    kept = line | {"losses": [0.05] * 50, "metric": "psnr", "bound": -30.0, "level": 0.0}
    kept["losses"] = [-35.0] * 50
    _, fails, holds = table([facts | {"lines": [line, kept]}])
    assert fails[5:] == ["30 (0.600)", "0.000 FAILS", "0.50", "0.500"]
    assert holds[2:] == ["Psnr(30)", "0.9", "50", "50 (1.000)", "1.000", "35", "1 (no level passes)"]
    assert "2 s to go, and took 10 samples and 3 s (1.50)." in said_in_words(facts)
    shared = facts | {"said": said | {"busy": [0.8, 0.6]}}
    assert "3 s (1.50; in the processor's time 1.12)." in said_in_words(shared), "3 * .6 over 2 * .8"
    assert "went on where it was" in said_in_words(facts | {"said": said | {"resumed": True}})


def test_an_empty_folder_has_nothing_to_show(tmp_path):
    with pytest.raises(SystemExit, match="nothing to show"):
        shown(tmp_path)
