"""Facts and arrays in one safetensors file: the facts as JSON in its header, and a sha256 over both.

digest = sha256(facts, then for every array by name: its name, shape and bytes)
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dicache.files.arrays_file import ArraysFile, arrays_bytes
from dicache.files.checked import Fields, FileFault, json_of

_DIGEST = "sha256"


def sealed(kind: str, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A file of this kind ("dicache.fitted", ...). Raises ValueError or TypeError for facts that are no JSON."""
    text = json.dumps(dict(facts), allow_nan=False)
    pieces = {key: (array.shape, [np.ascontiguousarray(array).tobytes()]) for key, array in arrays.items()}
    return arrays_bytes(arrays, {kind: text, _DIGEST: _digest(text, pieces)})


def unsealed(file: ArraysFile, kind: str) -> Fields:
    """The facts of a file whose facts and arrays are what its digest says; no array is in memory by then. Raises
    FileFault for any other.
    """
    text = file.strings.get(kind)
    if text is None:
        raise FileFault(f"its header is not that of {kind}")
    facts = json_of(text.encode())
    pieces = {key: (stored.shape, file.pieces(key)) for key, stored in file.stored.items()}
    if _digest(text, pieces) != file.strings.get(_DIGEST):
        raise FileFault("it is damaged, its checksum does not fit")
    return facts


def _digest(text: str, pieces: Mapping[str, tuple[tuple[int, ...], Iterable[bytes]]]) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(pieces):
        shape, array = pieces[key]
        digest.update(f"{key} {shape}".encode())
        for piece in array:
            digest.update(piece)
    return digest.hexdigest()
