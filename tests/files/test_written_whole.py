"""A file is written whole or not at all: what was there before survives a kill and a full disk."""

import os
import stat
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from dicache.errors import DicacheError, FileError
from dicache.files.arrays_file import arrays_bytes, arrays_file
from dicache.files.atomic import STALE, replacing, write_bytes, write_text
from dicache.files.bound_arrays import bound_arrays, read_facts, settled, write_bound, writing
from dicache.files.checked import FileFault
from helpers.killed import ended, killed_after, killed_at, on_a_full_disk, started

IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = (50, 300_000)
"""Numbers in the old file, and in the new one."""


def save(path: Path, version: int) -> None:
    """One of two versions of a file of facts and arrays."""
    write_bound(path, {"format": "test/1", "version": version}, "arrays", arrays(version))


def arrays(version: int) -> bytes:
    return arrays_bytes({"values": np.full(SIZES[version], version, np.float32)})


def version(path: Path) -> int:
    """Which one lies there, whole."""
    facts = read_facts(path, "test/1")
    with bound_arrays(path, facts, "arrays", 1 << 30) as file:
        values = file.array("values")
    number = facts.integer("version")
    assert values.shape == (SIZES[number],) and (values == number).all()
    return number


def only_the_two(path: Path) -> bool:
    return {file.name for file in path.parent.iterdir()} == {path.name, path.with_suffix(".safetensors").name}


@pytest.mark.parametrize("old", [0, 1])
def test_a_kill_at_any_touch_of_the_disk_leaves_the_old_file_or_the_new_one(old, tmp_path):
    path, event, seen, through = tmp_path / "mine.json", 0, set(), False
    while not through:
        save(path, old)
        through = killed_at(partial(save, path, 1 - old), event)
        seen.add(version(path))
        event += 1
    assert event > 20 and seen == {0, 1} and version(path) == 1 - old


@IN_ONE_FOLDER
@given(seconds=st.floats(0, 0.01), target=st.integers(0, 1))
def test_a_kill_at_any_time_leaves_the_old_file_or_the_new_one(seconds, target, tmp_path):
    path = tmp_path / "mine.json"
    save(path, 1 - target)
    through = killed_after(partial(save, path, target), seconds)
    assert version(path) == target or not through


@pytest.mark.parametrize("most", [0, 40, 200, 4000, 1_000_000])
def test_a_full_disk_is_one_error_and_leaves_the_old_file(most, tmp_path):
    path = tmp_path / "mine.json"
    save(path, 0)
    assert on_a_full_disk(partial(save, path, 1), most, FileError)
    assert version(path) == 0 and only_the_two(path)


def test_a_first_write_that_is_killed_leaves_nothing_that_could_be_taken_for_the_file(tmp_path):
    path, event = tmp_path / "mine.json", 0
    while not killed_at(partial(save, path, 1), event):
        assert not path.exists() or version(path) == 1
        path.unlink(missing_ok=True)
        path.with_suffix(".safetensors").unlink(missing_ok=True)
        event += 1
    assert version(path) == 1


def test_the_next_write_takes_away_what_a_kill_left(tmp_path):
    path = tmp_path / "mine.json"
    for event in range(5, 60, 9):
        save(path, 0)
        killed_at(partial(save, path, 1), event)
    for half_written in tmp_path.glob(".*.part.*"):
        os.utime(half_written, (half_written.stat().st_atime, half_written.stat().st_mtime - STALE - 1))
    fresh = tmp_path / ".mine.0a1b2c3d.part.json"  # of another process that is writing now
    fresh.touch()
    save(path, 1)
    fresh.unlink()
    assert version(path) == 1 and only_the_two(path)


def test_what_is_raised_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "plot.png"
    write_text(path, "old")
    for raised in (KeyboardInterrupt, ValueError):
        with pytest.raises(raised), replacing(path) as part:
            part.write_text("half")
            raise raised
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["plot.png"]


def test_a_name_to_write_to_has_the_suffix_that_was_asked_for(tmp_path):
    with replacing(tmp_path / ("p" * 250 + ".png")) as part:
        assert part.suffix == ".png"
        part.touch()


def test_who_reads_while_several_write_reads_one_of_their_files(tmp_path):
    path = tmp_path / "mine.json"
    save(path, 0)
    writers = [started(partial(save_often, path, number)) for number in (0, 1, 0)]
    seen = [settled(path, version) for _ in range(200)]
    for writer in writers:
        assert ended(writer)
    assert set(seen) <= {0, 1} and version(path) in (0, 1) and only_the_two(path)


def test_a_read_that_a_write_overtook_is_tried_again_and_no_other(tmp_path):
    path, tries = tmp_path / "mine.json", []
    save(path, 0)

    def overtaken(path: Path) -> int:
        tries.append(path)
        if len(tries) == 1:
            save(path, 1)
            raise FileFault("the arrays are others by now")
        return version(path)

    assert settled(path, overtaken) == 1 and len(tries) == 2
    (tmp_path / "mine.safetensors").write_bytes(b"damaged")
    with pytest.raises(FileFault):
        settled(path, version)


def save_often(path: Path, number: int) -> None:
    for k in range(20):
        save(path, (number + k) % 2)


def test_a_link_stays_one_and_what_it_points_to_is_replaced(tmp_path):
    (there := tmp_path / "there").mkdir()
    save(there / "mine.json", 0)
    (link := tmp_path / "link.json").symlink_to(there / "mine.json")
    (blob := tmp_path / "blobs").mkdir()
    (snapshot := tmp_path / "snapshot").mkdir()
    save(blob / "mine.json", 0)
    (blob / "mine.json").rename(blob / "abc")
    (blob / "mine.safetensors").rename(blob / "def")
    (snapshot / "mine.json").symlink_to("../blobs/abc")
    (snapshot / "mine.safetensors").symlink_to("../blobs/def")
    for path in (link, snapshot / "mine.json"):
        assert version(path) == 0
        save(path, 1)
        assert path.is_symlink() and version(path) == 1
    assert version(there / "mine.json") == 1 and (snapshot / "mine.safetensors").is_symlink()
    assert len(list(blob.iterdir())) == len(list(there.iterdir())) == len(list(snapshot.iterdir())) == 2


def test_permissions_stay_and_a_new_file_has_the_usual_ones(tmp_path):
    path = tmp_path / "mine.txt"
    write_text(path, "one")
    (usual := tmp_path / "usual").touch()
    assert path.stat().st_mode == usual.stat().st_mode
    path.chmod(0o640)
    write_text(path, "two")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_cannot_be_written_is_one_error_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    locked = tmp_path / "locked"
    locked.write_text("old")
    locked.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the one who runs the tests may write anywhere
    for path in (tmp_path / "no" / "where", tmp_path / "folder", locked, locked / "below", tmp_path / ("x" * 300)):
        with pytest.raises(FileError, match="cannot be written"):
            write_bytes(path, b"new")
    assert locked.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_a_device_is_written_to_and_stays_one():
    write_text("/dev/null", "nothing to lose")
    assert Path("/dev/null").is_char_device()


def test_what_would_not_be_read_is_not_written(tmp_path):
    for facts in ({"about": "x" * (20 << 20)}, {"about": float("nan")}, {"about": object()}):
        with pytest.raises(DicacheError, match=r"the test cannot be written to .*mine\.json"):
            with writing(FileError, "test", tmp_path / "mine.json"):
                write_bound(tmp_path / "mine.json", facts, "arrays", arrays(0))
        assert not (tmp_path / "mine.json").exists()
    with pytest.raises(FileError, match=r"ends in \.json"), writing(FileError, "test", tmp_path / "mine.txt"):
        raise AssertionError("not reached")


@given(
    shapes=st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 3), max_size=3), max_size=4),
    dtype=st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"]),
    strings=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_arrays_come_back_and_the_same_ones_are_the_same_bytes(shapes, dtype, strings, tmp_path_factory):
    shapes.pop("__metadata__", None)
    made = {key: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype) for key, shape in shapes.items()}
    data = arrays_bytes(made, strings)
    assert data == arrays_bytes(dict(reversed(made.items())), strings)
    path = tmp_path_factory.mktemp("arrays") / "a"
    path.write_bytes(data)
    with arrays_file(path, 1 << 20) as file:
        assert file.strings == (strings or {}) and file.stored.keys() == made.keys()
        for key, array in file.arrays().items():
            assert array.dtype == made[key].dtype and array.shape == made[key].shape
            np.testing.assert_array_equal(array, made[key])
