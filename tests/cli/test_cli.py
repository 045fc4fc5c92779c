"""The command line: a mistake is one clear line, and what is asked for is written."""

import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from dicache.cli import app
from dicache.models.catalogue import catalogue


@pytest.fixture
def command(run_main, monkeypatch, tmp_path):
    """Runs `dicache ...` in an empty folder: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    return partial(run_main, app.main)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--prompt", ""), "empty"),
        (("generate", "--prompt", "center large red dog on white background"), "dog"),
        (
            ("generate", "--prompt", "center large red circle on white background", "--error-budget", "-1"),
            "error_budget",
        ),
        (
            ("generate", "--prompt", "center large red circle on white background", "--out", "nowhere/image.png"),
            "does not exist",
        ),
        (("calibrate", "nowhere.txt", "--out", "p.json"), "does not exist"),
        (("models", "--json", "--markdown"), "one of them"),
        (("demo", "--out", "demo.txt"), "not a picture"),
        (("search", "--finder", "nobody", "--out", "s.json"), "there is no finder 'nobody'"),
        (("search", "--finder", "fixed", "--option", "trials=3", "--out", "s.json"), "has no option 'trials'"),
        (("demo", "--steps", "0"), "steps"),
        (("dance",), "dance"),
    ],
)
def test_a_mistake_on_the_command_line_is_exit_code_2_and_a_clear_line(arguments, message, command, tmp_path):
    code, _, errors = command(*arguments)
    assert code == 2
    assert message in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_the_command_is_installed_and_its_exit_code_is_a_shells(tmp_path):
    arguments = [sys.executable, "-m", "dicache", "dance"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "dance" in done.stderr and "Traceback" not in done.stderr


def test_calibrating_fine_tries_twice_as_many_levels(command, tmp_path, monkeypatch):
    asked = {}

    def measured(pipe, prompts, **options):
        asked[options["seed"]] = options["levels"]
        return SimpleNamespace(name="p", metrics=["latent"], about={"cost": "nothing"}, save=lambda out: None)

    monkeypatch.setattr("dicache.measuring.calibrate.calibrate", measured)
    (tmp_path / "prompts.txt").write_text("center large red circle on white background\n")
    for seed, options in enumerate(([], ["--fine"])):
        assert command("calibrate", "prompts.txt", "--out", "p.json", "--seed", str(seed), *options)[0] == 0
    coarse, fine = asked[0], asked[1]
    assert set(coarse) < set(fine) and len(fine) == 2 * len(coarse) - 1


def test_doctor_knows_what_is_in_use(command):
    facts = json.loads(command("doctor", "--json")[1])
    assert facts["torch"] and facts["diffusers"] and facts["extension"] and facts["reference model"]


def test_generate_draws_a_caption(command, tmp_path):
    caption = "center large red circle on white background"
    options = ("--error-budget", "0.1", "--steps", "12", "--out", "picture.png", "--json")
    code, output, errors = command("generate", "--prompt", caption, *options)
    assert code == 0, errors
    assert (tmp_path / "picture.png").is_file()
    assert json.loads(output)["compute_speedup"] > 1


CAPTION = "center large red circle on white background"


def test_what_calibrate_writes_generate_takes(command, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{CAPTION}\n" * 11)
    calibrating = ("--steps", "6", "--guidance", "2", "--batch", "11", "--json")
    code, _, errors = command("calibrate", "prompts.txt", "--out", "mine.json", *calibrating)
    assert code == 0, errors
    drawing = ("--prompt", CAPTION, "--steps", "6", "--error-budget", "0.5", "--json")
    promised = ("--profile", "mine.json", "--confidence", "0.8")
    code, output, errors = command("generate", *drawing, *promised, "--guidance", "2")
    assert code == 0, errors
    report = json.loads(output)
    assert report["confidence"] == 0.8 and report["profile_fits"] and "6 steps, guidance 2" in report["profile"]
    code, _, errors = command("generate", *drawing, *promised)
    assert code == 2 and "differs in guidance" in errors
    code, _, errors = command("generate", *drawing, "--profile", "lost.json")
    assert code == 2 and "lost.json does not exist" in errors


@pytest.mark.parametrize("folder", [None, "kept"])
@pytest.mark.parametrize("phase", ["dicache.reference.assembly.pipeline", "dicache.measuring.calibrate.calibrate"])
def test_ctrl_c_is_a_shells_exit_code_and_one_line_that_says_where_it_goes_on(
    command, tmp_path, monkeypatch, phase, folder
):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(phase, stop)
    (tmp_path / "prompts.txt").write_text(f"{CAPTION}\n" * 11)
    options = () if folder is None else ("--checkpoint", folder)
    code, output, errors = command("calibrate", "prompts.txt", "--out", "p.json", *options)
    assert code == 130 and not output and len(errors.splitlines()) == 1
    assert ("nothing was kept" if folder is None else "goes on where it was, with --checkpoint kept") in errors
    assert folder is None or (tmp_path / folder).is_dir()


def test_search_writes_a_front_its_plot_and_what_it_found(command, tmp_path):
    options = ("--option", "fill=extrapolate", "--option", "longest=2", "--json")
    code, output, errors = command("search", "--finder", "smoothcache", "--steps", "6", "--out", "front.json", *options)
    assert code == 0, errors
    front = json.loads(output)
    assert front[0]["work"] == 1.0 and front[0]["error"] < 1e-5 and front[-1]["work"] < 0.7
    assert (tmp_path / "front.json").is_file() and (tmp_path / "front.png").is_file()


def test_models_are_listed_as_json(command):
    code, output, _ = command("models", "--json")
    assert code == 0 and [entry["model"] for entry in json.loads(output)] == [entry.model for entry in catalogue()]
