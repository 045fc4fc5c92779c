"""What is looked at before any work is done: paths, prompts, scales."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dicache.cli.arguments import check_json, check_picture, console, lines_of, prompts_of
from dicache.cli.doctor import PACKAGES, examine
from dicache.cli.load import arguments_of
from dicache.cli.options import PipelineCall, Texts
from dicache.cli.searching import Watched, table
from dicache.errors import DicacheError, FileError, ModeError
from dicache.reporting.progress import progress


@given(scale=st.floats(1, 20))
def test_a_scale_of_1_is_no_guidance_and_any_larger_one_is_given_on(scale, reference):
    named = arguments_of(reference, PipelineCall(), scale)
    assert named == ({} if scale == 1 else {"negative_prompt": "", "true_cfg_scale": scale})


def test_what_a_call_does_not_take_is_refused_and_what_it_takes_is_named_as_the_pipeline_does(reference):
    call = PipelineCall(height=32, argument=["max_sequence_length=16", "prompt_2=a [red] circle"])
    assert arguments_of(reference, call, None) == {
        "height": 32,
        "max_sequence_length": 16,
        "prompt_2": "a [red] circle",
    }
    for wrong, message in {
        "num_frames=3": "takes no num_frames",
        "steps": "Expected NAME=VALUE",
        "height=3": "Use --height",
        "output_type=pil": "is for dicache to give",
        "image=@nowhere.png": "is no picture",
    }.items():
        with pytest.raises(DicacheError, match=message):
            arguments_of(reference, PipelineCall(argument=[wrong]), None)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_file_of_prompts_in_another_encoding_is_one_clear_error(encoding, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("ein gr\u00fcner Kreis\n".encode(encoding))
    with pytest.raises(FileError, match=r"is not a text in UTF-8\. Save it as UTF-8"):
        lines_of(file)
    file.write_bytes("ein gr\u00fcner Kreis\r\nzwei".encode("utf-8-sig"))
    assert lines_of(file) == ["ein gr\u00fcner Kreis", "zwei"]


def test_prompts_come_from_one_place(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree")
    assert prompts_of(Texts(prompts=file, first=2)) == prompts_of(Texts(first=2), file) == ["one", "two"]
    assert prompts_of(Texts(prompt=["four"])) == ["four"] and prompts_of(Texts()) == []
    for texts, positional in ((Texts(prompts=file, prompt=["four"]), None), (Texts(prompts=file), file)):
        with pytest.raises(ModeError, match="both given"):
            prompts_of(texts, positional)


def test_markup_in_names_is_shown_and_not_interpreted(capsys):
    console().print("wrote [bold]red[/bold] :smile: [/]")
    assert capsys.readouterr().out == "wrote [bold]red[/bold] :smile: [/]\n"


def test_prompts_are_the_lines_that_say_something(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("  a red circle \n\n\t\na blue square")
    assert lines_of(file) == ["a red circle", "a blue square"]
    for missing in (tmp_path / "nothing.txt", tmp_path):
        with pytest.raises(FileError, match=r"does not exist\. Expected a text file"):
            lines_of(missing)


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg", "a.webp"])
def test_a_picture_may_be_written_into_a_folder_that_exists(name, tmp_path):
    check_picture(tmp_path / name)
    with pytest.raises(FileError, match=r"the folder .* does not exist"):
        check_picture(tmp_path / "nowhere" / name)
    assert list(tmp_path.iterdir()) == [], "looking writes nothing"


@pytest.mark.parametrize("name", ["a", "a.txt", "a.png.json", "png"])
def test_what_is_no_picture_by_its_name_is_refused(name, tmp_path):
    with pytest.raises(FileError, match="is not a picture's name"):
        check_picture(tmp_path / name)


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(FileError, match=r"a\.png cannot be written"):
        check_picture(tmp_path / "a.png")


def test_numbers_are_written_as_json_into_a_folder_that_exists(tmp_path):
    check_json(tmp_path / "a.json")
    for wrong in (tmp_path / "a.JSON", tmp_path / "a"):
        with pytest.raises(FileError, match=r"Expected one that ends in \.json"):
            check_json(wrong)
    with pytest.raises(FileError, match=r"the folder .* does not exist"):
        check_json(tmp_path / "nowhere" / "a.json")


def test_every_kind_of_work_has_a_bar_of_its_own_that_goes_on():
    with progress(shown=False) as bar:
        tick = Watched(bar)
        for what, done in (("drawing", 1), ("measuring", 1), ("drawing", 3)):
            tick(what, done, 4)
        assert [(task.description, task.completed, task.total) for task in bar.tasks] == [
            ("drawing", 3, 4),
            ("measuring", 1, 4),
        ]


def test_what_is_in_use_is_plain_facts_and_none_for_what_is_missing(monkeypatch):
    facts = examine()
    assert set(PACKAGES) < set(facts) and facts["device"].startswith(("cpu", "NVIDIA"))
    monkeypatch.setattr("dicache.cli.doctor.PACKAGES", ("no-such-package",))
    monkeypatch.setattr("dicache.cli.doctor.MODEL", Path("nowhere"))
    missing = examine()
    assert missing["no-such-package"] is None and missing["reference model"] is None


def test_found_schedules_are_a_table_with_their_strips():
    rows = [(1.0, 0.0, [[0], [0], [0]]), (1 / 3, 0.0123, [[0], [1], [2]]), (0.5, 0.1, [[0, 1]])]
    schedules = [
        SimpleNamespace(work=work, error=error, table=np.array(cells), letters="".join("#=/"[row[0]] for row in cells))
        for work, error, cells in rows
    ]
    output = io.StringIO()
    Console(file=output, width=80).print(table("a finder", schedules))
    lines = output.getvalue()
    assert "schedules of a finder" in lines and "###" in lines and "#=/" in lines
    assert "0.333" in lines and "0.0123" in lines and "2 sites" in lines
