"""What a long measurement has done so far goes on after a kill, and is refused where it is damaged or another's."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from dicache.errors import ProfileError, ScheduleError
from dicache.files.arrays_file import arrays_bytes
from dicache.files.checkpoint import Checkpoint
from helpers.killed import killed_at, on_a_full_disk


def made() -> dict[str, np.ndarray]:
    return {"errors": np.arange(5.0), "masks": np.ones((2, 3), np.uint8), "done": np.array([True, False])}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("made again")


def test_an_entry_is_made_once_and_comes_back(tmp_path):
    first = Checkpoint(tmp_path / "c", ["call"]).entry("run-0", made)
    again = Checkpoint(tmp_path / "c", ["call"])
    for entry in (first, again.entry("run-0", never)):
        assert entry.keys() == made().keys()
        for key, array in made().items():
            np.testing.assert_array_equal(entry[key], array)
            assert entry[key].dtype == array.dtype
    assert again.resumed == 1
    assert Checkpoint(None, [object()]).entry("run-0", made).keys() == made().keys()


def test_a_kill_while_it_is_written_costs_this_entry_only(tmp_path):
    def measure(folder) -> None:
        checkpoint = Checkpoint(folder, ["call"])
        for name in ("run-0", "run-1"):
            checkpoint.entry(name, made)

    event, ended = 0, False
    while not ended:
        ended = killed_at(partial(measure, tmp_path / str(event)), event)
        checkpoint = Checkpoint(tmp_path / str(event), ["call"])
        for name in ("run-0", "run-1"):
            assert checkpoint.entry(name, made).keys() == made().keys()
        event += 1
    assert event > 10 and checkpoint.resumed == 2


def test_a_full_disk_and_a_folder_that_is_none_are_one_error(tmp_path):
    Checkpoint(tmp_path / "c", ["call"])
    entry = Checkpoint(tmp_path / "c", ["call"]).entry
    assert on_a_full_disk(partial(entry, "run-0", made), 50, ProfileError)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ScheduleError, match="cannot be used"):
            Checkpoint(folder, [], ScheduleError)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: path.write_bytes(arrays_bytes(made())),
        lambda path: os.truncate(path, 1 << 33),
        lambda path: path.write_bytes(path.with_name("run-1.safetensors").read_bytes()),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["cut", "changed", "empty", "no file", "foreign", "giant", "of another name", "a folder"],
)
def test_a_damaged_or_foreign_entry_is_named(damage, tmp_path):
    checkpoint = Checkpoint(tmp_path, ["call"])
    for name in ("run-0", "run-1"):
        checkpoint.entry(name, made)
    damage(tmp_path / "run-0.safetensors")
    with pytest.raises(ProfileError, match=r"run-0\.safetensors is damaged: .*Delete it"):
        checkpoint.entry("run-0", never)


def test_an_entry_of_another_call_is_refused(tmp_path):
    Checkpoint(tmp_path / "one", ["one"]).entry("run-0", made)
    checkpoint = Checkpoint(tmp_path / "two", ["two"])
    (tmp_path / "one" / "run-0.safetensors").rename(tmp_path / "two" / "run-0.safetensors")
    with pytest.raises(ProfileError, match="of other measurements"):
        checkpoint.entry("run-0", never)


def test_a_folder_in_which_nothing_was_measured_yet_is_taken_by_another_call(tmp_path):
    Checkpoint(tmp_path, ["one"])
    second = Checkpoint(tmp_path, ["two"])
    second.entry("a", made)
    with pytest.raises(ProfileError, match="holds other measurements"):
        Checkpoint(tmp_path, ["one"])
    assert Checkpoint(tmp_path, ["two"]).has("a")


@pytest.mark.parametrize("mark", [b"", b"\xff\xfe\x00", b"x" * 5000])
def test_a_damaged_mark_is_one_error(mark, tmp_path):
    Checkpoint(tmp_path, ["call"]).entry("run-0", made)
    (tmp_path / "arguments.sha256").write_bytes(mark)
    with pytest.raises(ProfileError, match=r"other measurements|cannot be used"):
        Checkpoint(tmp_path, ["call"])


def test_two_at_once_in_one_folder_have_the_same_entries(tmp_path):
    """Both measure, and either's file stands: whole, since it took the other's place in one step."""
    names = [f"run-{k}" for k in range(12)]
    together = threading.Barrier(2)

    def measure(_: int) -> list[dict[str, np.ndarray]]:
        together.wait()
        checkpoint = Checkpoint(tmp_path / "c", ["call"])
        return [checkpoint.entry(name, made) for name in names]

    with ThreadPoolExecutor(2) as pool:
        for entries in pool.map(measure, range(2)):
            assert all(np.array_equal(entry["errors"], made()["errors"]) for entry in entries)
    again = Checkpoint(tmp_path / "c", ["call"])
    assert all(again.entry(name, never)["done"].tolist() == [True, False] for name in names)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == sorted(
        ["arguments.sha256", *(f"{name}.safetensors" for name in names)]
    )
