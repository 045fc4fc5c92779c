"""What people, files and machines do to the command line: stopped at any stage, odd names, other encodings, terminals
with few letters, folders that cannot be written. Each is one clear line.
"""

import io
import json
import os
import sys
from functools import partial

import pytest

import dicache
from dicache.cli import app
from dicache.cli.arguments import check_folder
from dicache.errors import FileError

CAPTION = "center large red circle on white background"
STAGES = {
    "demo": ("dicache.cli.demo.run", ()),
    "generate": ("dicache.cli.drawing.draw", ("--prompt", CAPTION)),
    "inspect": ("dicache.cli.load.ready", ()),
    "calibrate": ("dicache.cli.load.ready", ("prompts.txt", "--out", "p.json")),
    "tune": ("dicache.cli.searching.ready", ("--out", "s.json")),
    "tune --show": ("dicache.cli.load.ready", ("--show", "c.png")),
    "search": ("dicache.cli.searching.search_for", ("--finder", "fixed", "--out", "s.json")),
    "report": ("dicache.reporting.text.load_report", ("r.json",)),
    "share": ("dicache.files.checked.read_json", ("p.json", "shared")),
    "models": ("dicache.models.catalogue.catalogue", ()),
    "doctor": ("dicache.cli.doctor.examine", ()),
}
"""Of each command, what it is stopped in and what it is called with."""


@pytest.fixture
def command(run_main, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return partial(run_main, app.main)


@pytest.mark.parametrize("name", STAGES)
def test_every_command_that_is_stopped_says_so_in_one_line(name, command, monkeypatch, tmp_path):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    stage, options = STAGES[name]
    monkeypatch.setattr(stage, stop)
    (tmp_path / "prompts.txt").write_text(f"{CAPTION}\n" * 11)
    (tmp_path / "p.json").write_text("{}")
    code, output, errors = command(*name.split()[:1], *options)
    assert code == 130 and not output and errors.startswith("dicache: stopped; "), errors
    assert errors.count("\n") == 1


LONG = "a" * 300


@pytest.mark.parametrize(
    "options",
    [
        ("generate", "--prompt", CAPTION, "--out", f"{LONG}.png"),
        ("generate", "--prompt", CAPTION, "--report", f"{LONG}.json"),
        ("generate", "--prompts", LONG),
        ("generate", "--prompt", CAPTION, "--settings", LONG),
        ("generate", "--prompt", CAPTION, "--schedule", LONG),
        ("generate", "--prompt", CAPTION, "--profile", f"{LONG}.json"),
        ("inspect", "--model", f"./{LONG}"),
        ("calibrate", "prompts.txt", "--out", "p.json", "--checkpoint", LONG),
        ("report", LONG),
        ("share", LONG, "folder"),
    ],
    ids=lambda options: " ".join(options)[:40],
)
def test_a_name_that_is_too_long_is_one_line(options, command, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{CAPTION}\n" * 11)
    code, _, errors = command(*options)
    assert code == 2 and errors.startswith("dicache: ") and errors.count("\n") == 1, errors


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
@pytest.mark.parametrize(
    "options",
    [
        ("generate", "--prompt", CAPTION, "--settings", "f.toml"),
        ("generate", "--prompt", CAPTION, "--schedule", "f.json"),
        ("generate", "--prompt", CAPTION, "--confidence", "0.9", "--profile", "f.json"),
        ("generate", "--prompts", "f.json"),
        ("report", "f.json"),
        ("share", "f.json", "folder"),
    ],
    ids=" ".join,
)
def test_a_file_in_another_encoding_is_one_line(options, encoding, command, tmp_path):
    for name in ("f.json", "f.toml"):
        (tmp_path / name).write_bytes('{"fü": 1}'.encode(encoding))
    code, _, errors = command(*options)
    assert code == 2 and errors.startswith("dicache: f.") and errors.count("\n") == 1, errors


@pytest.mark.parametrize("name", ["fp16", "float64", "", "torch.float16"])
def test_a_dtype_of_another_name_is_told_which_there_are(name, command, tmp_path):
    for where in (("--dtype", name), ("--settings", "mine.toml")):
        (tmp_path / "mine.toml").write_text(f'[pipeline]\ndtype = "{name}"')
        code, _, errors = command("generate", "--prompt", CAPTION, *where)
        assert code == 2 and "bfloat16" in errors and "Traceback" not in errors


def test_a_terminal_with_few_letters_is_written_to_all_the_same(reference, tmp_path, monkeypatch):
    with dicache.enable(reference, error_budget=0.1) as cache:
        reference([CAPTION], num_inference_steps=4, output_type="latent")
    cache.report().save(tmp_path / "r.json")
    (tmp_path / "ü.json").write_text((tmp_path / "r.json").read_text())
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(
        sys, "argv", ["dicache", "report", str(tmp_path / "ü.json"), "--html", str(tmp_path / "ü.html")]
    )
    with pytest.raises(SystemExit) as ended:
        app.main()
    output.flush()
    assert ended.value.code == 0 and b"\\xfc.html" in output.buffer.getvalue()


def test_a_checkpoint_that_cannot_be_written_to_is_known_before_the_work(tmp_path, monkeypatch, command):
    (tmp_path / "kept").mkdir()
    (tmp_path / "prompts.txt").write_text(f"{CAPTION}\n" * 11)
    check_folder(tmp_path / "kept")
    allowed = os.access  # who runs this may be root, who may write anywhere
    refused = lambda path, mode: not (mode == os.W_OK and "kept" in str(path)) and allowed(path, mode)  # noqa: E731
    monkeypatch.setattr(os, "access", refused)
    with pytest.raises(FileError, match="kept cannot be written to"):
        check_folder(tmp_path / "kept")
    code, _, errors = command("calibrate", "prompts.txt", "--out", "p.json", "--checkpoint", "kept")
    assert code == 2 and "kept cannot be written to. Give a folder for the checkpoint" in errors


def test_a_folder_in_which_a_file_stands_is_no_place_to_share_in(command, tmp_path):
    (tmp_path / "folder").write_text("mine")
    (tmp_path / "p.json").write_text(json.dumps({"format": "dicache.profile/1"}))
    code, _, errors = command("share", "p.json", "folder")
    assert code == 2 and errors.count("\n") == 1 and (tmp_path / "folder").read_text() == "mine"
