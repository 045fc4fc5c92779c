"""A file is written whole or not at all: under a name of its own beside the old one, flushed to the disk, and renamed.

    write `.mine.1f3a.part.json`,    fsync,    rename to `mine.json`,    fsync the folder

A kill or a full disk leaves what was there before. A symbolic link stays one: what it points to is replaced. What a
kill left half written is taken away by a later write into the folder.
"""

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dicache.errors import FileError

STALE = 3600.0
"""Seconds after which nobody writes on at a half-written file."""


def write_bytes(path: str | Path, data: bytes) -> None:
    """Raises FileError where that is impossible; the file is what it was before then."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """In UTF-8. Raises FileError where that is impossible; the file is what it was before then."""
    write_bytes(path, text.encode())


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name to write to, with the suffix of `path`, which takes its place in one step when the block has ended without
    an error. Raises FileError for what the system refuses.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        if _is_device(target):  # nothing in it can be lost, and it must not be replaced by a file
            yield target
            return
        _check_writable(target)
        _sweep(target.parent)
        yield part
        _flush(part)
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise FileError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # the folder may be what was refused
            part.unlink(missing_ok=True)


def _is_device(target: Path) -> bool:
    """Whether it is a pipe, a terminal, /dev/null."""
    if not target.exists():
        return False
    mode = target.stat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _check_writable(target: Path) -> None:
    """A rename would go over a folder's empty self and over a file that its owner locked."""
    if target.is_dir():
        raise IsADirectoryError("it is a folder")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError("it is read-only")


def _sweep(folder: Path) -> None:
    """Take away what killed writers left."""
    for left in folder.glob(f".*.{'[0-9a-f]' * 8}.part*"):
        with suppress(FileNotFoundError):  # another writer swept first
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()


def _flush(path: Path) -> None:
    """To the disk; a folder's own entry too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
