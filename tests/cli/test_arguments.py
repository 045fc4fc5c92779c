"""What is looked at before any work is done: paths, prompts, scales."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dicache.cli.arguments import check_json, check_picture, guided, lines_of, progress
from dicache.cli.doctor import PACKAGES, examine
from dicache.cli.measure import _table, _ticking
from dicache.errors import FileError


@given(scale=st.floats(1, 20))
def test_a_scale_of_1_is_no_guidance_and_any_larger_one_is_given_on(scale):
    assert guided(scale) == ({} if scale == 1 else {"negative_prompt": "", "true_cfg_scale": scale})


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
    with progress(quiet=True) as bar:
        tick = _ticking(bar)
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
        SimpleNamespace(work=work, error=error, table=np.array(table), letters="".join("#=/"[row[0]] for row in table))
        for work, error, table in rows
    ]
    output = io.StringIO()
    Console(file=output, width=80).print(_table("a finder", schedules))
    lines = output.getvalue()
    assert "schedules of a finder" in lines and "###" in lines and "#=/" in lines
    assert "0.333" in lines and "0.0123" in lines and "2 sites" in lines
