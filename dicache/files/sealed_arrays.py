"""Facts and arrays in one safetensors file: the facts as JSON in its header, and a sha256 over both.

digest = sha256(facts, then for every array by name: its name, kind of numbers, shape and bytes)
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dicache.files.arrays_file import DTYPES, ArraysFile, arrays_bytes
from dicache.files.checked import Fields, FileFault, json_of

_DIGEST = "sha256"
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}


class _Array(NamedTuple):
    kind: str
    shape: tuple[int, ...]
    pieces: Iterable[bytes]


def sealed(kind: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A file of this kind ("dicache.fitted", ...). Raises ValueError or TypeError for facts that are no JSON."""
    text = json.dumps(dict(facts), allow_nan=False)
    hashed = {
        key: _Array(_KINDS.get(array.dtype, ""), array.shape, [np.ascontiguousarray(array).tobytes()])
        for key, array in arrays.items()
    }
    return arrays_bytes(arrays, {kind: text, _DIGEST: _digest(text, hashed)})


def unsealed(file: ArraysFile, kind: str) -> Fields:
    """The facts of a file whose facts and arrays are what its digest says; no array is in memory by then. Raises
    FileFault for any other.
    """
    text = file.strings.get(kind)
    if text is None:
        raise FileFault(f"its header is not that of {kind}")
    facts = json_of(text.encode())
    hashed = {key: _Array(stored.kind, stored.shape, file.pieces(key)) for key, stored in file.stored.items()}
    if _digest(text, hashed) != file.strings.get(_DIGEST):
        raise FileFault("it is damaged, its checksum does not fit")
    return facts


def _digest(text: str, arrays: Mapping[str, _Array]) -> str:
    digest = hashlib.sha256(text.encode())
    for key, array in sorted(arrays.items()):
        digest.update(f"{key} {array.kind} {array.shape}".encode())
        for piece in array.pieces:
            digest.update(piece)
    return digest.hexdigest()
