"""The command line: a mistake is one clear line before anything heavy is loaded, and what is asked for is written."""

import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from dicache.cli import app
from dicache.measuring.schedule_measurements import ScheduleMeasurements
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
        (("demo", "--error-budget", "nan"), "error_budget is nan"),
        (("search", "--finder", "nobody", "--out", "s.json"), "there is no finder 'nobody'"),
        *(
            (("search", "--finder", finder, "--out", "s.json", *options), message)
            for finder, options, message in (
                ("fixed", ("--option", "trials=3"), "has no option 'trials'"),
                ("fixed", ("--option", "fill=dynamic"), "fill is 'dynamic'"),
                ("fixed", ("--option", "fill"), "has no value"),
                ("fixed", ("--sites", "everything"), "sites is 'everything'"),
                ("fixed", ("--cost", "0.5", "--budget", "0.1"), "both given"),
                ("fixed", ("--cost", "2"), "cost is 2.0"),
                ("fixed", ("--prompts", "nowhere.txt"), "nowhere.txt does not exist"),
                ("multistep", (), "Give a cost or a budget"),
                ("multistep", ("--cost", "0.5", "--sites", "blocks"), "fits whole evaluations"),
            )
        ),
        (("search", "--finder", "fixed", "--out", "nowhere/s.json"), "the folder nowhere does not exist"),
        (("search", "--finder", "fixed", "--out", "s.txt"), "ends in .json"),
        (("demo", "--steps", "0"), "steps"),
        (("dance",), "dance"),
    ],
)
def test_a_mistake_on_the_command_line_is_exit_code_2_and_a_clear_line(
    arguments, message, command, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "dicache.measuring.schedule_measurements", None)
    monkeypatch.setitem(sys.modules, "dicache.api", None)  # whoever imports what is heavy fails
    code, _, errors = command(*arguments)
    assert code == 2
    assert message in errors and "Traceback" not in errors
    assert "Usage" in errors or (errors.startswith("dicache: ") and errors.count("\n") == 1)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_known_before_torch_is_loaded(tmp_path):
    code = (
        "import sys; sys.argv[1:] = 'search --finder fixed --option trials=3 --out s.json'.split()\n"
        "from dicache.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["2", "False", "False"], done.stderr


SEARCH = ("search", "--finder", "annealing", "--steps", "4", "--captions", "1", "--cost", "0.75", "--batch", "1")


@pytest.mark.parametrize(
    ("after", "options", "message"),
    [
        (0, ("--checkpoint", "c"), "stopped; nothing was saved yet\n"),
        (0, (), "--checkpoint FOLDER keeps"),
        (2, ("--checkpoint", "c"), "stopped; the same command goes on from c\n"),
    ],
)
def test_a_search_that_is_stopped_says_what_there_is_to_go_on_from(after, options, message, command, monkeypatch):
    played, draws = ScheduleMeasurements._played, []

    def play(self, *args):
        if len(draws) == after:
            raise KeyboardInterrupt
        draws.append(args)
        return played(self, *args)

    monkeypatch.setattr(ScheduleMeasurements, "_played", play)
    code, _, errors = command(*SEARCH, "--out", "s.json", *options)
    last = errors.splitlines(keepends=True)[-1]
    assert code == 130 and last.startswith("dicache: stopped") and message in last and "Traceback" not in errors


def test_a_budget_that_nothing_can_be_saved_within_is_noted(command):
    options = ("--steps", "4", "--captions", "1", "--budget", "1e-12", "--out", "s.json")
    code, _, errors = command("search", "--finder", "law", *options)
    assert code == 0 and "note: law found nothing that can be skipped" in errors


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
        assert command("calibrate", "prompts.txt", "--out", "p.json", "--seed", str(seed), "--json", *options)[0] == 0
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


def test_what_calibrate_writes_generate_takes(command, tmp_path, monkeypatch):
    monkeypatch.setattr("dicache.measuring.calibrate.LEVELS", (0.1, 1.0, 3.0))
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
    assert ("--checkpoint FOLDER keeps" if folder is None else "nothing was saved yet") in errors
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
