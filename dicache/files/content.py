"""Arguments known by what they hold: tensors, images and arrays by digest, never by a repr, which has addresses in it
and leaves out the middle of what is long.
"""

import enum
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from dicache.errors import ArgumentError

DEEPEST = 50
"""Levels of what lies in one another; more are a circle."""


def digest_of(value: Any) -> str:  # noqa: ANN401
    """SHA-256 of an argument, hexadecimal: the same in every process, another for other contents. Raises ArgumentError
    for what cannot be known by its contents.
    """
    digest = hashlib.sha256()
    for piece in _pieces(value, 0):
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()


def _pieces(value: Any, depth: int) -> Iterator[bytes]:  # noqa: ANN401
    """Kind and contents, one after another; what has members says how many."""
    if depth > DEEPEST:
        raise ArgumentError(f"a {type(value).__name__} lies {DEEPEST} levels deep: it cannot be known by its contents.")
    kind = f"{type(value).__module__}.{type(value).__qualname__}".encode()
    for accepted, contents in _CONTENTS:
        if isinstance(value, accepted):
            members = contents(value)
            break
    else:
        members = _attributes(value)
    if isinstance(members, bytes):
        yield from (kind, members)
        return
    yield from (kind, str(len(members)).encode())
    for member in members:
        yield from _pieces(member, depth + 1)


def _attributes(value: Any) -> list[Any]:  # noqa: ANN401
    """Of an object: a dataclass, a config."""
    try:
        return _items(vars(value))
    except TypeError as error:
        raise ArgumentError(f"a {type(value).__name__} cannot be known by its contents.") from error


def _items(value: Mapping[Any, Any]) -> list[Any]:
    """In an order of their own, whatever order they came in."""
    return sorted(value.items(), key=lambda item: digest_of(item[0]))


def _tensor(value: torch.Tensor) -> list[Any]:
    if value.is_meta:
        raise ArgumentError("a tensor on the device 'meta' has no contents to be known by.")
    dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    plain = dense.cpu().contiguous()
    return [str(plain.dtype), list(plain.shape), plain.reshape(-1).view(torch.uint8).numpy().tobytes()]


def _array(value: np.ndarray) -> list[Any]:
    members = value.ravel().tolist() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
    return [str(value.dtype), list(value.shape), members]


def _function(value: FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    return [value.__module__, value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, cells]


def _builtin(value: BuiltinFunctionType) -> list[Any]:
    owner = value.__self__
    return [owner.__name__ if isinstance(owner, ModuleType) else owner, value.__qualname__]


_CONTENTS: list[tuple[Any, Callable[[Any], bytes | list[Any]]]] = [
    (enum.Enum, lambda value: [value.name]),
    ((bool, int, float, complex, type(None), torch.dtype, torch.device), lambda value: repr(value).encode()),
    ((type(...), range, slice), lambda value: repr(value).encode()),
    (str, lambda value: value.encode("utf-8", "surrogatepass")),
    ((bytes, bytearray), bytes),
    (Path, lambda value: str(value).encode()),
    (torch.Tensor, _tensor),
    (np.ndarray, _array),
    (np.generic, lambda value: [str(value.dtype), value.tobytes()]),
    (torch.Generator, lambda value: [str(value.device), value.get_state()]),
    (Image.Image, lambda value: [value.mode, list(value.size), value.tobytes()]),
    (nn.Module, lambda value: _items(value.state_dict())),
    (Mapping, _items),
    ((list, tuple), list),
    ((set, frozenset), lambda value: sorted(map(digest_of, value))),
    (type, lambda value: f"{value.__module__}.{value.__qualname__}".encode()),
    (FunctionType, _function),
    (np.ufunc, lambda value: value.__name__.encode()),
    (BuiltinFunctionType, _builtin),
    (MethodType, lambda value: [value.__self__, value.__func__]),
    (partial, lambda value: [value.func, value.args, value.keywords]),
    (CodeType, lambda value: [value.co_code, list(value.co_consts), list(value.co_names)]),
]
"""The contents of every kind: bytes, or members that are known by theirs."""
