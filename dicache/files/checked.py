"""Reading files that came from elsewhere: plain files of a bounded size, JSON of a bounded number of values, fields of
known kinds. Nothing is executed, and memory stays within twice the file and a constant.

What is wrong raises FileFault; the reader of a kind of file turns it, and all else that can go wrong, into the one
error of its kind (`refusing`).
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from dicache.errors import DicacheError

JSON_BYTES = 16 << 20
"""Most of a JSON file."""
JSON_VALUES = 400_000
"""Most values in one, which take about 120 bytes each once they are read."""
NAME_LENGTH = 255
Json = dict[str, Any]
T = TypeVar("T")


class FileFault(Exception):
    """What is wrong with a file; `remedy` is what to do where that is not what its kind of file mostly needs."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.remedy = remedy


@contextmanager
def refusing(error: type[DicacheError], what: str, remedy: str) -> Iterator[None]:
    """Raises `error`, "{what}: the reason. {remedy}" in one line, whatever goes wrong inside with a file's bytes."""
    try:
        yield
    except (
        FileFault,
        DicacheError,
        OSError,
        ArithmeticError,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
    ) as why:
        message = " ".join(str(why).split()).rstrip(".")
        own = why.remedy if isinstance(why, FileFault) else ""
        raise error(f"{what}: {message}. {own or remedy}".rstrip()) from why


@contextmanager
def opened(path: Path, most: int) -> Iterator[tuple[BufferedReader, int]]:
    """A plain file, or one behind a link, and its size. Raises FileFault for anything else, or more than `most`
    bytes.
    """
    if not path.is_file():
        raise FileFault(f"{path.name} does not exist or is not a plain file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # of what was opened: another file may have its name by now
        if size > most:
            raise FileFault(f"{path.name} has more than {most} bytes")
        yield file, size


def plain_bytes(path: Path, most: int) -> bytes:
    """All of a plain file, or of one behind a link. Raises FileFault for anything else, or more than `most` bytes."""
    with opened(path, most) as (file, size):
        return file.read(size)


def json_of(data: bytes) -> "Fields":
    """An object as JSON. Raises FileFault for no JSON, other JSON, too many values or too deep ones, ValueError for
    numbers that are too long.
    """
    if sum(map(data.count, (b",", b":", b"[", b"{"))) > JSON_VALUES:
        raise FileFault(f"it holds more than {JSON_VALUES} values")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FileFault(f"it is cut short or damaged, or no text at all ({error})") from error
    if sys.getsizeof(text) > JSON_BYTES + 1024:  # one wide letter makes every letter wide
        raise FileFault(f"it has more than {JSON_BYTES} bytes once it is read")
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise FileFault("it is nested too deep") from error
    except json.JSONDecodeError as error:
        raise FileFault(f"it is cut short or damaged, or no JSON ({error})") from error
    if not isinstance(content, dict):
        raise FileFault("it holds no JSON object")
    return Fields(content)


def read_json(path: Path) -> "Fields":
    """As `json_of`, of a file. Raises FileFault for what is no plain file, or too large."""
    return json_of(plain_bytes(path, JSON_BYTES))


def sibling(name: str) -> str:
    """The name of a safetensors file in the same folder. Raises FileFault for any other."""
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors") or len(name) > NAME_LENGTH:
        raise FileFault(f"{name[:NAME_LENGTH]!r} is not the name of a safetensors file in the same folder")
    return name


class Fields:
    """A JSON object, whose values are taken by name and kind. Raises FileFault for one that is missing, of another kind
    or out of its range.
    """

    content: Mapping[str, Any]

    def __init__(self, content: Mapping[str, Any], within: str = "") -> None:
        self.content, self._within = content, within

    def has(self, key: str) -> bool:
        """Whether it is there, and not null."""
        return self.content.get(key) is not None

    def text(self, key: str) -> str:
        return self._of_kind(key, str)

    def fields(self, key: str) -> "Fields":
        return Fields(self._of_kind(key, dict), key)

    def values(self, key: str) -> list[Any]:
        """A list of anything."""
        return self._of_kind(key, list)

    def each(self, key: str) -> list["Fields"]:
        """A list of objects."""
        if not all(isinstance(value, dict) for value in self.values(key)):
            raise self._fault(f"{key!r} is not a list of objects")
        return [Fields(value, key) for value in self.values(key)]

    def texts(self, key: str) -> list[str]:
        if not all(isinstance(value, str) for value in self.values(key)):
            raise self._fault(f"{key!r} are not all strings")
        return self.values(key)

    def integer(self, key: str, least: float = -math.inf, most: float = math.inf) -> int:
        value = self.content.get(key)
        if type(value) is not int:
            raise self._fault(f"{key!r} is missing or of another kind")
        if not least <= value <= most:
            raise self._fault(f"{key!r} is {value}, not from {least:g} to {most:.0f}")
        return value

    def number(self, key: str, least: float = -math.inf) -> float:
        """Finite, from `least` on."""
        value = _finite(self.content.get(key))
        if value is None:
            raise self._fault(f"{key!r} is missing or of another kind, not a finite number")
        if value < least:
            raise self._fault(f"{key!r} is {value:g}, not a finite number from {least:g} on")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers."""
        numbers = [_finite(value) for value in self.values(key)]
        if None in numbers:
            raise self._fault(f"{key!r} are not all finite numbers")
        return tuple(number for number in numbers if number is not None)

    def _of_kind(self, key: str, kind: type[T]) -> T:
        value = self.content.get(key)
        if not isinstance(value, kind):
            raise self._fault(f"{key!r} is missing or of another kind")
        return value

    def _fault(self, what: str) -> FileFault:
        return FileFault(f"in {self._within!r}, {what}" if self._within else what)


def _finite(value: Any) -> float | None:  # noqa: ANN401
    """As a float, if it is a number that is one."""
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
