"""The file that prompts are remembered in: bounded, by tenant, for several processes, and nothing of anybody else's."""

import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from dicache.errors import MemoryFileError
from dicache.memory.store import Memory
from helpers.fuzzing import LONG
from helpers.killed import ended, started
from helpers.remembering import value_of, work_on


def test_what_is_written_is_read_by_its_tenant_alone(tmp_path):
    mine = Memory(tmp_path / "m.sqlite", "mine")
    other = replace(mine, tenant="other")
    assert mine.read("a") is None and mine.write("a", b"1") and mine.read("a") == b"1" and other.read("a") is None
    other.write("a", b"2")
    assert (mine.read("a"), other.read("a"), mine.size()) == (b"1", b"2", (1, 1))
    other.forget()
    assert (mine.read("a"), other.read("a")) == (b"1", None)
    mine.forget("a")
    assert mine.size() == (0, 0)


def test_what_was_used_longest_ago_goes_first_and_no_other_tenant_pays(tmp_path):
    few = Memory(tmp_path / "m.sqlite", most_entries=3, most_bytes=10)
    replace(few, tenant="other").write("a", b"x" * 10)
    for key in "abc":
        few.write(key, b"12")
    assert few.read("a") == b"12"
    few.write("d", b"12")
    assert [few.read(key) is not None for key in "abcd"] == [True, False, True, True]
    few.write("e", b"x" * 9)
    assert few.size() == (1, 9) and not few.write("f", b"x" * 11) and few.read("e")
    assert replace(few, tenant="other").size() == (1, 10)


def test_processes_that_write_read_and_die_leave_what_was_there(tmp_path):
    """150 operations in each of two processes, 10,000 in four in the long form; one is killed half-way."""
    tenants, operations = (("a", "b"), 150) if LONG == 1 else (("a", "a", "b", "c"), 2500)
    memories = [Memory(tmp_path / "m.sqlite", tenant, most_entries=30) for tenant in tenants]
    children = [started(lambda m=m, k=k: work_on(m, operations, k)) for k, m in enumerate(memories)]
    victim = started(lambda: work_on(memories[0], 10**6, 99))
    assert all(map(ended, children))
    os.kill(victim, signal.SIGKILL)
    assert not ended(victim)
    for memory in memories:
        entries, _ = memory.size()
        assert 0 < entries <= 30
        assert work_on(memory, 50, 7) > 0
        assert {memory.read(str(k)) for k in range(40)} <= {None, *(value_of(memory.tenant, str(k)) for k in range(40))}


def foreign(path):
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("CREATE TABLE mine (x)")


def booby_trapped(path):
    Memory(path).write("a", b"1")
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("CREATE TRIGGER t AFTER UPDATE ON entries BEGIN DELETE FROM entries; END")


def of_the_next_version(path):
    Memory(path).write("a", b"1")
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("PRAGMA user_version = 2")


HOSTILE = {
    "no database": lambda path: path.write_bytes(b"prompts " * 1000),
    "another database": foreign,
    "a trigger": booby_trapped,
    "another version": of_the_next_version,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_of_something_else_is_one_error_and_stays_as_it_is(kind, tmp_path):
    path = tmp_path / "m.sqlite"
    HOSTILE[kind](path)
    before = path.read_bytes() if path.is_file() else b""
    for use in (lambda m: m.check(), lambda m: m.read("a"), lambda m: m.write("a", b"2"), lambda m: m.forget()):
        with pytest.raises(MemoryFileError, match="Expected a file that dicache made"):
            use(Memory(path))
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_what_cannot_be_is_refused(tmp_path):
    for wrong in ({"most_bytes": 0}, {"most_entries": True}, {"tenant": 3}):
        with pytest.raises(MemoryFileError, match=r"[Ee]xpected"):
            Memory(tmp_path / "m", **wrong)
    with pytest.raises(MemoryFileError, match="cannot be used"):
        Memory(tmp_path / "no" / "folder").check()
