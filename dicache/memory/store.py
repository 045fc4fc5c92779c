"""A bounded file of entries, by tenant and key, that several processes read and write at the same time.

It is a SQLite file in write-ahead mode: readers and writers do not wait for each other, and a killed writer leaves what
was there. Every operation is a connection and one short transaction of its own, so threads and forks share nothing.
What a tenant may have is bounded by entries and by bytes, and what was used longest ago goes first. The store keeps
bytes and knows nothing of what is in them.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dicache.errors import MemoryFileError

APPLICATION, VERSION = 0x64696361, 1
"""By which SQLite files of ours are known."""
WAIT = 10.0
"""Seconds that an operation waits for another process's."""
SCHEMA = (
    "CREATE TABLE entries (tenant TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, bytes INTEGER NOT NULL, "
    "used REAL NOT NULL, PRIMARY KEY (tenant, key))",
    "CREATE INDEX oldest ON entries (tenant, used, bytes)",
)


@dataclass(frozen=True)
class Memory:
    """Where what text encoders give is remembered: `dicache.enable(pipe, memory=dicache.Memory("prompts.sqlite"))`.

    `tenant` parts the prompts of one from those of another in the same file: an entry is seen by its tenant alone, and
    the bounds hold for each. `most_bytes` and `most_entries` bound what it may have; what was used longest ago goes
    first. Raises MemoryFileError for bounds that are none, or a tenant that is no text.
    """

    path: str | Path
    tenant: str = ""
    most_bytes: int = 1 << 30
    most_entries: int = 100_000

    def __post_init__(self) -> None:
        for name, bound in (("most_bytes", self.most_bytes), ("most_entries", self.most_entries)):
            if isinstance(bound, bool) or not isinstance(bound, int) or bound < 1:
                raise MemoryFileError(f"{name} is {bound!r}. Expected a whole number, 1 or more.")
        if not isinstance(self.tenant, str) or not isinstance(self.path, str | Path) or not str(self.path):
            raise MemoryFileError(f"{self}: expected a path, and a text for the tenant.")

    def check(self) -> None:
        """Make the file, or see that it is one of ours. Raises MemoryFileError."""
        with self._open(changes=True):
            pass

    def read(self, key: str) -> bytes | None:
        """The tenant's entry of this name, which counts as used; None where there is none. Raises MemoryFileError."""
        with self._open(changes=True) as file:
            row = file.execute("SELECT value FROM entries WHERE tenant = ? AND key = ?", (self.tenant, key)).fetchone()
            if row is None or not isinstance(row[0], bytes):
                return None
            file.execute("UPDATE entries SET used = ? WHERE tenant = ? AND key = ?", (time.time(), self.tenant, key))
            return row[0]

    def write(self, key: str, value: bytes) -> bool:
        """Whether it could be remembered: not where it is larger than all that may be. Raises MemoryFileError."""
        if len(value) > self.most_bytes:
            return False
        with self._open(changes=True) as file:
            self._put(file, key, value)
        return True

    def _put(self, file: sqlite3.Connection, key: str, value: bytes) -> None:
        row = (self.tenant, key, value, len(value), time.time())
        file.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", row)
        self._evict(file, key)

    def update(self, key: str, change: Callable[[bytes | None], bytes]) -> bool:
        """Write what `change` makes of the entry, of None where there is none; nobody else writes in between. Whether
        it could be remembered. Raises MemoryFileError.
        """
        with self._open(changes=True) as file:
            row = file.execute("SELECT value FROM entries WHERE tenant = ? AND key = ?", (self.tenant, key)).fetchone()
            value = change(row[0] if row is not None and isinstance(row[0], bytes) else None)
            if len(value) > self.most_bytes:
                return False
            self._put(file, key, value)
        return True

    def forget(self, key: str | None = None) -> None:
        """Delete the entry of this name, or all of the tenant's. Raises MemoryFileError."""
        with self._open(changes=True) as file:
            every = "DELETE FROM entries WHERE tenant = ?"
            file.execute(every, (self.tenant,)) if key is None else file.execute(
                f"{every} AND key = ?", (self.tenant, key)
            )

    def size(self) -> tuple[int, int]:
        """The tenant's entries and bytes. Raises MemoryFileError."""
        with self._open() as file:
            return self._size(file)

    def _size(self, file: sqlite3.Connection) -> tuple[int, int]:
        total = "SELECT count(*), coalesce(sum(bytes), 0) FROM entries WHERE tenant = ?"
        entries, size = file.execute(total, (self.tenant,)).fetchone()
        return int(entries), int(size)

    def _evict(self, file: sqlite3.Connection, latest: str) -> None:
        """Let go of the oldest, never of the latest."""
        entries, size = self._size(file)
        rows = file.execute(
            "SELECT key, bytes FROM entries WHERE tenant = ? AND key != ? ORDER BY used", (self.tenant, latest)
        )
        for key, freed in rows.fetchall() if entries > self.most_entries or size > self.most_bytes else ():
            if entries <= self.most_entries and size <= self.most_bytes:
                break
            file.execute("DELETE FROM entries WHERE tenant = ? AND key = ?", (self.tenant, key))
            entries, size = entries - 1, size - freed

    @contextmanager
    def _open(self, *, changes: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction, whole or not at all."""
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)) as file:
                file.execute("PRAGMA trusted_schema = OFF")
                file.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(max(1 << 20, 2 * self.most_bytes), (1 << 31) - 1))
                if changes:
                    self._make(file)
                file.execute("BEGIN IMMEDIATE" if changes else "BEGIN")
                try:
                    self._check(file)
                    yield file
                except BaseException:
                    file.execute("ROLLBACK")
                    raise
                file.execute("COMMIT")
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
            raise MemoryFileError(
                f"the prompt memory {self.path} cannot be used: {error}. Nothing in it was changed. Expected a file "
                "that dicache made, or the name of a new one in a folder that can be written to."
            ) from error

    def _make(self, file: sqlite3.Connection) -> None:
        """The tables, in a file that has none."""
        if file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] or _ours(file):
            return
        _write_ahead(file)
        file.execute("BEGIN IMMEDIATE")
        if not _ours(file):  # nobody else was first
            for statement in SCHEMA:
                file.execute(statement)
            file.execute(f"PRAGMA application_id = {APPLICATION}")
            file.execute(f"PRAGMA user_version = {VERSION}")
        file.execute("COMMIT")

    def _check(self, file: sqlite3.Connection) -> None:
        """Tables of ours and nothing else: a trigger or a view of somebody's would run with every operation."""
        made = file.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        if not _ours(file) or sorted(str(sql) for (sql,) in made) != sorted(SCHEMA):
            raise ValueError("it is a file of something else, or of another version")


def _ours(file: sqlite3.Connection) -> bool:
    marks = (file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    return tuple(marks) == (APPLICATION, VERSION)


def _write_ahead(file: sqlite3.Connection) -> None:
    """Of several processes that make a file at once, those that come late are refused without being let wait."""
    until = time.monotonic() + WAIT
    while True:
        try:
            file.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
