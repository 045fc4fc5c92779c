"""Facts in a JSON file that a person can read, with arrays in a safetensors file beside it, bound to it by sha256.

    mine.json    {"format": .., .., "arrays": {"file": "mine.safetensors", "sha256": ..}}

The arrays are looked for under the name of the JSON file, as renaming or copying both leaves them, then under the name
in it: the first that the digest fits are taken.

The two are one file to a kill: what the old facts name is not touched before the new ones are in place. Where other
arrays lie under the name, the new ones are first written under one that carries their digest, facts that name it take
the place of the old ones, and only then both move to the usual name. Writers in one folder take turns, and who reads
while one writes reads again.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from dicache.errors import DicacheError, FileError
from dicache.files.arrays_file import ArraysFile, arrays_file
from dicache.files.atomic import write_bytes, write_text
from dicache.files.checked import JSON_BYTES, Fields, FileFault, opened, read_json, sibling

Facts = Mapping[str, Any]
T = TypeVar("T")


@contextmanager
def writing(error: type[DicacheError], what: str, path: Path) -> Iterator[None]:
    """Raises `error` for what cannot be written, or is not called .json."""
    if path.suffix != ".json":
        raise error(f"{path} is not a {what}'s name. Expected one that ends in .json.")
    try:
        yield
    except (OSError, DicacheError, ValueError, TypeError) as why:
        raise error(f"the {what} cannot be written to {path}: {str(why).rstrip('.')}.") from why


def write_facts(path: Path, facts: Facts) -> None:
    """Raises FileError where that is impossible, ValueError or TypeError for what is no JSON, or more than is read."""
    text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
    if len(text) > JSON_BYTES:
        raise ValueError(f"it would have {len(text)} bytes, and more than {JSON_BYTES} are not read")
    write_text(path, text)


def write_bound(path: Path, facts: Facts, key: str, data: bytes) -> None:
    """Facts that name these arrays under `key`, and the arrays. Raises as `write_facts`."""
    digest, usual = hashlib.sha256(data).hexdigest(), _usual(path)
    interim = usual.with_name(f"{usual.stem}.{digest}.safetensors")
    with _turn(usual.parent):
        foreign = usual.exists() and _digest(usual) != digest
        for arrays in (interim, usual) if foreign else (usual,):
            write_bytes(arrays, data)
            write_facts(path, {**facts, key: {"file": arrays.name, "sha256": digest}})
        for left in usual.parent.iterdir():
            if _is_interim(left.name, usual.stem):
                left.unlink(missing_ok=True)


def read_facts(path: Path, kind: str) -> Fields:
    """Raises FileFault for a file of another format, or what is no JSON."""
    facts = read_json(path)
    if facts.content.get("format") != kind:
        raise FileFault(f"its format is not {kind}")
    return facts


@contextmanager
def bound_arrays(path: Path, facts: Fields, key: str, most: int) -> Iterator[ArraysFile]:
    """The arrays that facts read from `path` name under `key`, of at most so many bytes. Raises FileFault for others
    than were saved with them.
    """
    bound = facts.fields(key)
    name, digest = sibling(bound.text("file")), bound.text("sha256")
    arrays = _arrays_path(path, name, digest, most)
    with arrays_file(arrays, most) as file:
        if file.sha256() != digest:
            raise FileFault(f"{arrays.name} is not the file it was saved with (sha256 differs)")
        yield file


def settled(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of facts and arrays; once more where others were written while it read."""
    while True:
        before = _version(path)
        try:
            return read(path)
        except (FileFault, OSError):
            if _version(path) == before:
                raise


def _version(path: Path) -> tuple[int, int] | None:
    """Of a file that is replaced, never changed; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """This writer's, until it has ended, is killed or goes on without one: some network folders know no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise FileError(f"{folder} cannot be written to: {error.strerror}.") from error
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _arrays_path(path: Path, name: str, digest: str, most: int) -> Path:
    """Beside the facts, or, where only these are a link, beside what it points to. Raises FileFault where no arrays
    lie there.
    """
    facts = (path, Path(os.path.realpath(path))) if path.is_symlink() else (path,)
    candidates = dict.fromkeys(
        arrays for one in facts for arrays in (one.with_suffix(".safetensors"), one.with_name(name))
    )
    there = [arrays for arrays in candidates if arrays.exists()]
    if not there:
        names = " or ".join(dict.fromkeys(arrays.name for arrays in candidates))
        remedy = "Copy the two files together, or rename it back."
        raise FileFault(f"its arrays are not beside it: {path.name} and {names} belong together", remedy)
    return there[0] if len(there) == 1 else next((arrays for arrays in there if _fits(arrays, digest, most)), there[0])


def _fits(path: Path, digest: str, most: int) -> bool:
    try:
        with opened(path, most) as (file, _):
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except (FileFault, OSError):
        return False


def _usual(path: Path) -> Path:
    """Where arrays are written: in the place of those that are read, under the name of the facts."""
    here = path.with_suffix(".safetensors")
    return here if here.exists() else Path(os.path.realpath(path)).with_suffix(".safetensors")


def _is_interim(name: str, stem: str) -> bool:
    digest = name.removeprefix(f"{stem}.").removesuffix(".safetensors")
    return name == f"{stem}.{digest}.safetensors" and len(digest) == 64 and set(digest) <= set("0123456789abcdef")


def _digest(path: Path) -> str:
    with opened(path, path.stat().st_size) as (file, _):
        return hashlib.file_digest(file, "sha256").hexdigest()
