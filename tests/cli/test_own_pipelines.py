"""A pipeline of the user's, saved in stock format, goes through every command; what cannot be done is one line."""

import json
import shutil
from functools import partial

import pytest
import torch
from PIL import Image

import dicache
from dicache.cli import app
from dicache.cli.drawing import BUDGETS, Drawing, DrawnBatch, Pictures, _save
from pipelines.stock import save_stable_diffusion

STEPS = ("--steps", "8", "--guidance", "4")


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("stock"))


@pytest.fixture
def command(run_main, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return partial(run_main, app.main)


def prompts(tmp_path, count=12):
    (tmp_path / "prompts.txt").write_text("\n".join(f"a circle of size {k} [red]" for k in range(count)))


def test_a_stock_pipeline_draws_prompts_from_a_file_and_its_report_is_read_again(stock, command, tmp_path):
    prompts(tmp_path, 3)
    options = ("--prompts", "prompts.txt", "--batch", "2", "--negative-prompt", "blur", "--error-budget", "0.2")
    code, output, errors = command("generate", "--model", stock, *STEPS, *options, "--compare", "--report", "r.json")
    assert code == 0, errors
    assert all((tmp_path / f"image-{k}.png").is_file() for k in range(3)), "one each"
    assert "seeds: 0, 1" in output and "seeds: 2" in output and output.count("true errors against") == 2
    assert ("less time" in output or "as long" in output) and "\r" not in errors
    assert "drawing: 52 of 52, done in" in errors, "two steps of the first batch are not timed"
    code, again, errors = command("report", "r-0.json", "--html", "page.html", "--plot", "plot.png")
    assert code == 0, errors
    table = again[: again.index("wrote")].strip()
    assert table in output and (tmp_path / "page.html").is_file() and (tmp_path / "plot.png").is_file()
    assert json.loads(command("report", "r-1.json", "--json")[1])["model"] == "UNet2DConditionModel"


def test_what_took_longer_and_what_is_beyond_its_budget_is_said():
    class Told:
        def to_dict(self):
            return {"samples": [{"budget": 0.5}, {"budget": 0.05}, {"budget": None}], "confidence": None}

    exact, away = torch.ones(3, 4), torch.ones(3, 4) * 1.1
    drawn = [Pictures([], latents, seconds) for latents, seconds in ((away, 3.0), (exact, 2.0))]
    lines = Drawing([DrawnBatch(["a", "b", "c"], [0, 1, 2], drawn[0], Told(), drawn[1])], ships=False).lines()
    assert any("1.50x as long" in line for line in lines)
    assert any(line.startswith("note: samples [1] are beyond their budget") for line in lines)


def test_classes_of_ones_own_are_named_by_their_module(stock, command, tmp_path, monkeypatch):
    folder = shutil.copytree(stock, tmp_path / "own")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["my_parts_for_this_test", "MyVae"]
    (folder / "model_index.json").write_text(json.dumps(index))
    own = "from diffusers import AutoencoderKL, ModelMixin\n\n\nclass MyVae(AutoencoderKL):\n    pass\n"
    (tmp_path / "my_parts_for_this_test.py").write_text(own)
    monkeypatch.syspath_prepend(tmp_path)
    code, _, errors = command("inspect", "--model", folder, *STEPS)
    assert code == 2 and errors.endswith("name their module: --module my_model.\n") and errors.count("\n") == 1
    code, _, errors = command("inspect", "--model", folder, *STEPS, "--module", "my_parts_for_thsi_test")
    assert code == 2 and "--module my_parts_for_thsi_test cannot be imported" in errors and errors.count("\n") == 1
    code, output, errors = command("inspect", "--model", folder, *STEPS, "--module", "my_parts_for_this_test", "--json")
    assert code == 0, errors
    assert "MyVae" in output


def test_a_stock_pipeline_is_calibrated_and_keeps_its_promise_or_says_why_not(stock, command, tmp_path, monkeypatch):
    monkeypatch.setattr("dicache.measuring.calibrate.LEVELS", (0.1, 0.5))
    prompts(tmp_path)
    calibrating = ("--batch", "6", "--negative-prompt", "blur", "--out", "mine.json")
    code, output, errors = command("calibrate", "prompts.txt", "--model", stock, *STEPS, *calibrating)
    assert code == 0, errors
    assert "3 runs a prompt" in errors and "36 samples, in 6 batches of 6" in errors and "24 samples to go" in errors
    assert "12 (yours)" in errors and "0 of 2.4" in errors and "calibrating, tests: 6 of 6, done in" in errors
    assert (
        "can promise up to a confidence of 0.8" in errors and "It took" in errors and "-MACs of the denoiser" in errors
    )
    assert "confidence 0.8: budget 0.02" in output and "confidence 0.9: needs 22 prompts" in output
    drawing = (
        "--prompt",
        "a circle",
        "--profile",
        "mine.json",
        "--confidence",
        "0.8",
        "--error-budget",
        "0.5",
        "--json",
    )
    code, output, errors = command("generate", "--model", stock, *STEPS, *drawing, "--negative-prompt", "blur")
    assert code == 0, errors
    report = json.loads(output)
    assert report["confidence"] == 0.8 and report["profile_fits"] and report["seeds"] == [0]
    code, _, errors = command("generate", "--model", stock, "--steps", "9", *drawing)
    assert code == 2 and "steps" in errors and errors.count("\n") == 1


def test_a_stock_pipeline_is_tuned_and_drawn_by_what_was_tuned(stock, command, tmp_path):
    prompts(tmp_path, 5)
    code, output, errors = command("tune", "prompts.txt", "--model", stock, *STEPS, "--batch", "4", "--out", "s.json")
    assert code == 0, errors
    said = next(line for line in errors.splitlines() if line.startswith("5 prompts (yours)"))
    samples, runs = int(said.split()[3]), int(said.split()[8])
    assert said.split()[4:8] == ["samples", "to", "go,", "in"] and runs < samples
    assert f"for {4 + samples} samples" in errors, "as many were drawn as were said to be, after the first batch"
    assert "the default with as many computed steps errs" in errors and "wrote s.json" in output
    code, output, errors = command(
        "generate", "--model", stock, *STEPS, "--prompt", "x", "--schedule", "s.json", "--json"
    )
    assert code == 0, errors
    assert json.loads(output)["denoiser_speedup"] >= 2


def test_what_is_seen_in_a_stock_pipeline(stock, command):
    code, output, errors = command("inspect", "--model", stock, *STEPS, "--json")
    assert code == 0, errors
    facts = json.loads(output)
    assert facts["pipeline"] == "StableDiffusionPipeline" and facts["steps"] == 8 and not facts["notes"]
    (unet,) = facts["denoisers"].values()
    assert unet["stacks"] == {"down_blocks": 2, "mid_block": 1, "up_blocks": 2}
    assert unet["sites"]["evaluation"] == unet["sites"]["skips"] == 1 and unet["sites"]["blocks"] == 5
    assert facts["solver"]["name"].startswith("DDIMScheduler") and facts["solver"]["known"]
    costs = facts["costs"]
    assert costs["calls"] == 2 and costs["parts"]["up_blocks"] > 0 and costs["cache_bytes"] > 0
    assert {part["name"] for part in facts["parts"]} == {"vae", "text_encoder", "unet"}
    shown = command("inspect", "--model", stock, *STEPS)[1]
    assert "DDIMScheduler" in shown and "mega-MACs" in shown


def test_costs_of_the_parts_add_up_to_those_of_a_run(command, reference):
    facts = json.loads(command("inspect", "--json")[1])
    with dicache.enable(reference, error_budget=0.0) as cache:
        reference("center large red circle on white background", num_inference_steps=2, output_type="latent")
    assert facts["costs"]["step"] == pytest.approx(2 * float(cache.trace.uncached[0]) / 2)
    assert facts["costs"]["calls"] == pytest.approx(2) and facts["denoisers"]["transformer"]["profile ships"]


def test_what_is_refused_is_said_with_its_reason(stock, command, monkeypatch):
    from dicache.models import find_blocks
    from dicache.models.family import Family

    refused = Family(model="UNet2DConditionModel", refused="it is a test")
    monkeypatch.setitem(find_blocks.FAMILIES, "UNet2DConditionModel", refused)
    code, output, _ = command("inspect", "--model", stock)
    assert code == 0 and "note: unet: UNet2DConditionModel cannot be cached: it is a test." in output
    code, _, errors = command("generate", "--model", stock, "--prompt", "x")
    assert code == 2 and "cannot be cached: it is a test" in errors


def test_the_model_that_ships_is_a_stock_folder_once_it_is_saved(reference, command, tmp_path):
    reference.save_pretrained(tmp_path / "saved")
    drawing = ("--prompt", "center large red circle on white background", "--steps", "20", "--json")
    saved = ("--model", tmp_path / "saved", "--height", "32", "--width", "32", "--guidance", "3.5", "--out", "b.png")
    here, there = (command("generate", *drawing, *options) for options in ((), saved))
    assert here[0] == there[0] == 0, there[2]
    first, second = (json.loads(output) for _, output, _ in (here, there))
    assert first["samples"][0]["actions"] == second["samples"][0]["actions"] and second["profile_fits"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nowhere/at/all"), "there is no folder nowhere/at/all"),
        (("--model", "./nowhere"), "there is no folder ./nowhere"),
        (("--model", "prompts.txt"), "prompts.txt is a file"),
        (("--model", "empty/folder"), "empty/folder cannot be loaded as a pipeline"),
        (("--model", "STOCK", "--argument", "num_frames=3"), "StableDiffusionPipeline takes no num_frames"),
        (
            ("--model", "STOCK", "--argument", "prompt_embeds=[1]"),
            "StableDiffusionPipeline refused what it was called with",
        ),
        (("--model", "STOCK", "--device", "moon"), "cannot be placed as asked"),
        (("--model", "STOCK", "--lora", "nowhere.safetensors=0.5"), "cannot be placed as asked"),
        (("--model", "STOCK", "--lora", "a.safetensors=much"), "has no scale"),
        (("--speedup", "2", "--schedule", "s.json"), "--speedup and --schedule are both given"),
        (("--report", "report.txt"), "ends in .json"),
    ],
)
def test_a_mistake_with_a_pipeline_of_ones_own_is_one_clear_line(options, message, stock, command, tmp_path):
    prompts(tmp_path)
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    options = [str(stock) if option == "STOCK" else option for option in options]
    code, _, errors = command("generate", "--prompt", "center large red circle on white background", *options)
    assert code == 2 and errors.startswith("dicache: ") and errors.count("\n") == 1
    assert message in errors


@pytest.mark.parametrize("text", [b"\xff\xfe{\x00", b"", b"[1, 2]", b'{"headline": "x"}', b'{"samples": [{"a": 1}]}'])
def test_what_is_no_report_is_one_clear_line(text, command, tmp_path):
    (tmp_path / "r.json").write_bytes(text)
    code, _, errors = command("report", "r.json")
    assert code == 2 and errors.startswith("dicache: r.json is no report") and errors.count("\n") == 1


def test_a_video_is_written_with_its_frames_and_not_as_a_picture(tmp_path):
    frames = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(4)]
    for name, written in (("a.gif", "a.gif"), ("b.webp", "b.webp"), ("c.png", "c.gif")):
        assert _save(frames, tmp_path / name) == tmp_path / written
        with Image.open(tmp_path / written) as video:
            assert video.n_frames == 4
    assert not (tmp_path / "c.png").exists()
    assert Drawing([], ships=False).save(tmp_path / "b.png") == []


def test_the_version_and_every_finder_are_said(command):
    from dicache.finders.by_name import finders

    code, output, _ = command("--version")
    assert code == 0 and output == f"dicache {dicache.__version__}\n"
    code, output, _ = command("search", "--help")
    assert code == 0 and all(f"\n  {name}: " in output for name in finders())


def test_a_file_of_settings_stands_where_options_would(stock, command, tmp_path):
    text = f'speedup = 2.0\n[pipeline]\nmodel = "{stock.name}"\nsteps = 6\nguidance = 4.0\nbatch = 1\n'
    file = stock.parent / "mine.toml"
    file.write_text(text + "argument = { eta = 0.5 }\n")
    code, output, errors = command("generate", "--settings", file, "--prompt", "a", "--prompt", "b", "--json")
    assert code == 0, errors
    first, second = json.loads(output)["batches"]
    assert [len(first["steps"]), first["seeds"], second["seeds"]] == [6, [0], [1]], "of the file"
    assert first["samples"][0]["budget"] is None and first["compute_speedup"] > 1.5, "the file's speed-up"
    code, output, errors = command("generate", "--settings", file, "--prompt", "a", "--steps", "8", "--json")
    assert code == 0 and len(json.loads(output)["steps"]) == 8, "an option wins"
    code, output, errors = command("inspect", "--settings", file, "--json")
    facts = json.loads(output)
    assert code == 0 and facts["steps"] == 6 and facts["call"] == {"guidance_scale": "4.0", "eta": "0.5"}, errors
    code, _, errors = command("generate", "--settings", file, "--prompt", "a", "--error-budget", "0.1")
    assert code == 2 and "the settings say speedup" in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pipeline]\nstep = 6", "'step' is no option of a pipeline, and stands in mine.toml. Did you mean steps?"),
        ("pipeline = 6", "Expected a table, as [pipeline] begins one."),
        ("[pipeline]\nargument = 6", "argument is 6 in mine.toml. Expected a table"),
        ("error_bugdet = 0.1", "'error_bugdet' is no setting, and stands in mine.toml. Did you mean error_budget?"),
        ("error_budget 0.1", "mine.toml holds no settings"),
    ],
)
def test_settings_that_are_none_are_one_line(stock, command, tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text)
    code, _, errors = command("generate", "--settings", "mine.toml", "--model", stock, "--prompt", "a")
    assert code == 2 and message in errors and errors.count("\n") == 1


def test_prompts_are_shown_at_five_budgets_beside_the_uncached_ones(stock, command, tmp_path):
    prompts(tmp_path, 3)
    options = ("--model", stock, *STEPS, "--first", "2", "--batch", "1")
    code, output, errors = command("tune", "prompts.txt", *options, "--show", "c.png", "--json")
    assert code == 0, errors
    uncached, *columns = json.loads(output)
    assert [column["budget"] for column in columns] == list(BUDGETS) and uncached["budget"] is None
    assert all(len(column[name]) == 2 for column in columns for name in ("errors", "psnr"))
    speedups = [column["speedup"] for column in columns]
    assert speedups == sorted(speedups) and speedups[-1] > 1.2 and uncached["speedup"] == 1
    assert columns[-1]["time_speedup"] == pytest.approx(uncached["seconds"] / columns[-1]["seconds"])
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width > 1000
    page = (tmp_path / "c.html").read_text()
    assert page.count("<img src=") == 12 and "a circle of size 1 [red]" in page and "error_budget=0.05" in page
    again = ("--prompt", "a circle of size 0 [red]", "--error-budget", "0.2", "--compare", "--json")
    code, output, errors = command("generate", "--model", stock, *STEPS, *again)
    assert json.loads(output)["true_errors"] == pytest.approx(columns[-1]["errors"][:1], rel=1e-3)


def test_a_picture_to_choose_from_is_no_schedule(command, stock):
    for options, message in (
        (("--show", "c.png", "--out", "s.json"), "--show looks for no schedule"),
        (("--show", "c.txt"), "is not a picture's name"),
        ((), "Give --out FILE.json for a schedule, or --show FILE.png"),
    ):
        code, _, errors = command("tune", "--prompt", "a", "--model", stock, *options)
        assert code == 2 and message in errors and errors.count("\n") == 1
