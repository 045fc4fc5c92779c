"""Arrays in a safetensors file: read from its header on, so that nothing large is in memory before it was checked.

    8 bytes, little end first: the header's length n    |    n bytes of JSON    |    the arrays, one after another

The header says of every array its kind of number, shape and place, and may carry strings. The bytes can be gone through
in pieces, for a digest, before any array is made.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dicache.files.checked import JSON_BYTES, Fields, FileFault, json_of, opened

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Those that numpy has; bf16 and the fp8s it has not."""
MOST_AXES = 32
PIECE = 1 << 20


class Stored(NamedTuple):
    """An array's kind, shape and place in the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class ArraysFile:
    """An open file. Raises FileFault for a header that is none, or that does not fit the file."""

    def __init__(self, file: BufferedReader, size: int, name: str) -> None:
        self._file, self._size, self._name = file, size, name
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(JSON_BYTES, size - 8):
            raise FileFault(f"{name} is no safetensors file")
        header = json_of(file.read(length))
        self.strings: Mapping[str, str] = _strings(header)
        """What the header carries beside the arrays."""
        names = [key for key in header.content if key != "__metadata__"]
        self.stored: Mapping[str, Stored] = {key: _stored(header.fields(key), key, 8 + length) for key in names}
        _check_places(self.stored.values(), 8 + length, size, name)

    def check_kinds(self, *kinds: str) -> None:
        """Raises FileFault for an array of other kinds of numbers than these (F32, I64, ...)."""
        for key, stored in self.stored.items():
            if stored.kind not in kinds:
                raise FileFault(f"the array {key!r} holds {stored.kind} numbers, not {' or '.join(kinds)}")

    def sha256(self) -> str:
        """Of the whole file."""
        digest = hashlib.sha256()
        for piece in self._pieces(0, self._size):
            digest.update(piece)
        return digest.hexdigest()

    def pieces(self, key: str) -> Iterator[bytes]:
        """The bytes of an array."""
        return self._pieces(self.stored[key].begin, self.stored[key].end)

    def array(self, key: str) -> np.ndarray:
        """Raises FileFault for kinds that numpy has not."""
        stored = self.stored[key]
        self.check_numpy(key)
        made = np.empty(stored.shape, DTYPES[stored.kind])
        view, filled = made.reshape(-1).view(np.uint8), 0
        for piece in self.pieces(key):
            view[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        return made

    def check_numpy(self, key: str) -> None:
        if self.stored[key].kind not in DTYPES:
            raise FileFault(f"the array {key!r} holds {self.stored[key].kind} numbers, which are not read here")

    def arrays(self) -> dict[str, np.ndarray]:
        """All of them."""
        return {key: self.array(key) for key in self.stored}

    def _pieces(self, begin: int, end: int) -> Iterator[bytes]:
        while begin < end:
            self._file.seek(begin)
            piece = self._file.read(min(PIECE, end - begin))
            if not piece:
                raise FileFault(f"{self._name} became shorter while it was read")
            begin += len(piece)
            yield piece


@contextmanager
def arrays_file(path: Path, most: int) -> Iterator[ArraysFile]:
    """Open one of at most so many bytes. Raises FileFault for anything else."""
    with opened(path, most) as (file, size):
        yield ArraysFile(file, size, path.name)


def arrays_bytes(arrays: Mapping[str, np.ndarray], strings: Mapping[str, str] | None = None) -> bytes:
    """A file of these: the same bytes for the same contents, which the library's own writer does not promise. Raises
    ValueError for kinds of numbers that are not read.
    """
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    if foreign := [key for key, array in arrays.items() if array.dtype not in kinds]:
        raise ValueError(f"the array {foreign[0]!r} holds {arrays[foreign[0]].dtype} numbers")
    header: dict[str, Any] = {} if strings is None else {"__metadata__": dict(strings)}
    pieces, at = [], 0
    for key in sorted(arrays, key=lambda key: (-arrays[key].itemsize, key)):  # so every array is aligned
        piece = arrays[key].tobytes()
        offsets = [at, at := at + len(piece)]
        header[key] = {"dtype": kinds[arrays[key].dtype], "shape": list(arrays[key].shape), "data_offsets": offsets}
        pieces.append(piece)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *pieces))


def _strings(header: Fields) -> dict[str, str]:
    strings: dict[str, Any] = dict(header.fields("__metadata__").content) if header.has("__metadata__") else {}
    if not all(isinstance(value, str) for value in strings.values()):
        raise FileFault("its header carries what is no string")
    return strings


def _stored(entry: Fields, key: str, start: int) -> Stored:
    shape, offsets = entry.values("shape"), entry.values("data_offsets")
    if (
        len(shape) > MOST_AXES
        or len(offsets) != 2
        or not all(type(n) is int and 0 <= n < 1 << 62 for n in shape + offsets)
    ):
        raise FileFault(f"the array {key!r} has no shape and place")
    stored = Stored(entry.text("dtype"), tuple(shape), start + offsets[0], start + offsets[1])
    wanted = math.prod(shape) * DTYPES[stored.kind].itemsize if stored.kind in DTYPES else stored.end - stored.begin
    if stored.end - stored.begin != wanted:
        raise FileFault(f"the array {key!r} does not fill its place")
    return stored


def _check_places(stored: Iterable[Stored], start: int, size: int, name: str) -> None:
    """One after another, from the header to the end."""
    at = start
    for array in sorted(stored, key=lambda array: (array.begin, array.end)):
        if array.begin != at:
            raise FileFault(f"the arrays of {name} do not lie one after another")
        at = array.end
    if at != size:
        raise FileFault(f"{name} has another size than its arrays")
