"""The package as a whole: lean import, layers, command line."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dicache.cli import app

ROOT = Path(__file__).resolve().parents[2]
LAYERS = [
    {"types", "errors", "extension", "_checkout"},
    {"budget", "norms", "grid", "history", "rows", "macs", "clock", "law", "plan", "effects", "moments"}
    | {"metrics", "conformal", "fingerprint", "profile", "resampled", "shelf", "measured", "identity", "ledger"}
    | {"files", "table", "timegrid"},
    {
        "probes",
        "estimators",
        "approximators",
        "controllers",
        "trace",
        "guided",
        "parts",
        "streams",
        "latents",
    },
    {"models", "sites"},
    {"config", "fitted", "presets", "run", "evidence", "judge", "memory", "inner", "whole", "closing", "session"}
    | {"basis", "schedule", "schedule_file"},
    {"hooks", "hooked", "adapters", "compiled", "caller"},
    {"page", "report", "api", "fitting", "audit", "calibration", "drawing", "turning", "sensitivity", "reference"}
    | {"finders", "importers"},
    {"demo", "doctor", "cli", "bench", "__main__"},
]


def run(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dicache", *arguments], capture_output=True, text=True, timeout=300, **kwargs
    )


def test_importing_dicache_loads_nothing_heavy():
    code = "import sys, dicache; print([m for m in ('torch', 'diffusers', 'matplotlib', 'cupy') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def imports_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]
    names = [
        node.module or "" if isinstance(node, ast.ImportFrom) else alias.name for node in nodes for alias in node.names
    ]
    both = names + [
        f"dicache.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "dicache"
        for alias in node.names
    ]
    return {name.split(".")[1] for name in both if name.startswith("dicache.")}


def layer_of(name: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if name in names), None)


def test_imports_go_down_only():
    folders = {
        "probes": ROOT / "probes",
        "estimators": ROOT / "estimators",
        "extension": ROOT / "extension",
        "bench": ROOT / "bench",
    }
    files = [
        (path.relative_to(ROOT / "dicache").parts[0].removesuffix(".py"), path)
        for path in (ROOT / "dicache").rglob("*.py")
    ]
    files += [(name, path) for name, folder in folders.items() for path in folder.rglob("*.py")]
    assert len(files) > 30
    for name, path in files:
        if name == "__init__":
            continue
        layer = layer_of(name)
        assert layer is not None, f"{name} has no layer"
        for other in imports_of(path) - {name}:
            upper = layer_of(other)
            assert upper is None or upper <= layer, f"{path} imports {other}, which lies above it"


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
def test_a_mistake_on_the_command_line_is_exit_code_2_and_a_clear_line(arguments, message, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_calibrating_fine_tries_twice_as_many_levels(tmp_path, monkeypatch):
    asked = {}

    def measured(pipe, prompts, **options):
        asked[options["seed"]] = options["levels"]
        return SimpleNamespace(name="p", metrics=["latent"], about={"cost": "nothing"}, save=lambda out: None)

    monkeypatch.setattr("dicache.measuring.calibrate.calibrate", measured)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("center large red circle on white background\n")
    for seed, options in enumerate(([], ["--fine"])):
        given = ["calibrate", "prompts.txt", "--out", "p.json", "--seed", str(seed), *options]
        assert CliRunner().invoke(app.app, given).exit_code == 0
    coarse, fine = asked[0], asked[1]
    assert set(coarse) < set(fine) and len(fine) == 2 * len(coarse) - 1


def test_doctor_knows_what_is_in_use(tmp_path):
    facts = json.loads(run("doctor", "--json", cwd=tmp_path).stdout)
    assert facts["torch"] and facts["diffusers"] and facts["extension"] and facts["reference model"]


def test_generate_draws_a_caption(tmp_path):
    caption = "center large red circle on white background"
    done = run(
        "generate",
        "--prompt",
        caption,
        "--error-budget",
        "0.1",
        "--steps",
        "12",
        "--out",
        "picture.png",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").is_file()
    assert json.loads(done.stdout)["compute_speedup"] > 1


def test_search_writes_a_front_its_plot_and_what_it_found(tmp_path):
    options = ("--option", "fill=extrapolate", "--option", "longest=2", "--json")
    done = run("search", "--finder", "smoothcache", "--steps", "6", "--out", "front.json", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    front = json.loads(done.stdout)
    assert front[0]["work"] == 1.0 and front[0]["error"] < 1e-5 and front[-1]["work"] < 0.7
    assert (tmp_path / "front.json").is_file() and (tmp_path / "front.png").is_file()
