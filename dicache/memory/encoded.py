"""What a text encoder returned, as bytes and back: the tensors to the bit, the object that they came in by its name.

Nothing that a file says is executed or imported: the object is looked for among the output classes of transformers and
of the encoder's own module. Whatever holds anything but tensors, tuples and nothing is not remembered.
"""

import io
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dicache.files.arrays_file import ArraysFile
from dicache.files.checked import Fields, FileFault
from dicache.files.sealed_arrays import sealed, unsealed
from dicache.tensors.tree import Tree

KIND = "dicache.encoded"
HOMES = ("transformers.modeling_outputs",)
"""Modules whose output classes are known, beside the encoder's own."""


class Unfit(Exception):
    """An output that cannot be remembered."""


def encoded(output: Tree, key: str, seconds: float) -> bytes:
    """An entry of this key; `seconds` is what the encoder took. Raises Unfit."""
    tensors: list[Tensor] = []
    shape = _shape(output, tensors)
    kinds = [{"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for t in tensors]
    bytes_of = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for t in tensors]
    arrays = {str(i): np.ascontiguousarray(array) for i, array in enumerate(bytes_of)}
    return sealed(KIND, {"key": key, "seconds": seconds, "output": shape, "tensors": kinds}, arrays)


def decoded(data: bytes, key: str, encoder: nn.Module, device: torch.device) -> tuple[Tree, float]:
    """The output on a device, and the seconds it took. Raises FileFault for anything but the entry of this key."""
    file = ArraysFile(io.BufferedReader(io.BytesIO(data)), len(data), "the entry")
    facts = unsealed(file, KIND)
    if facts.text("key") != key:
        raise FileFault("the entry is another prompt's")
    arrays = file.arrays()
    tensors = [_tensor(arrays[str(i)], kind, device) for i, kind in enumerate(facts.each("tensors"))]
    return _output(facts.fields("output"), tensors, encoder), facts.number("seconds", least=0)


def _shape(output: Tree, tensors: list[Tensor]) -> dict[str, Any]:
    """As JSON has it; tensors are put into the list."""
    if output is None:
        return {"kind": "nothing"}
    if isinstance(output, Tensor):
        if output.layout is not torch.strided or type(output) is not Tensor:
            raise Unfit
        tensors.append(output)
        return {"kind": "tensor", "index": len(tensors) - 1}
    if type(output) is tuple:
        return {"kind": "tuple", "items": [_shape(item, tensors) for item in output]}
    if isinstance(output, OrderedDict) and _home(type(output)):
        names = {"class": type(output).__name__, "module": type(output).__module__, "names": list(output)}
        return {"kind": "object", **names, "items": [_shape(item, tensors) for item in output.values()]}
    raise Unfit


def _home(kind: type) -> bool:
    return vars(sys.modules[kind.__module__]).get(kind.__name__) is kind


def _output(shape: Fields, tensors: list[Tensor], encoder: nn.Module) -> Tree:
    kind = shape.text("kind")
    if kind == "nothing":
        return None
    if kind == "tensor":
        return tensors[shape.integer("index", 0, len(tensors) - 1)]
    items = [_output(item, tensors, encoder) for item in shape.each("items")]
    if kind == "tuple":
        return tuple(items)
    return _class(shape, encoder)(**dict(zip(shape.texts("names"), items, strict=True)))


def _class(shape: Fields, encoder: nn.Module) -> type:
    name, module = shape.text("class"), shape.text("module")
    output = vars(sys.modules[module]).get(name) if module in {*HOMES, *_modules(encoder)} & {*sys.modules} else None
    if not isinstance(output, type) or not issubclass(output, OrderedDict):
        raise FileFault(f"there is no output {module}.{name}"[:200])
    return output


def _modules(encoder: nn.Module) -> set[str]:
    """Those that the encoder's classes are of."""
    return {kind.__module__ for kind in type(encoder).__mro__}


def _tensor(array: np.ndarray, kind: Fields, device: torch.device) -> Tensor:
    dtype = vars(torch).get(kind.text("dtype"))
    sizes = kind.values("shape")
    if not isinstance(dtype, torch.dtype) or not all(type(n) is int and n >= 0 for n in sizes):
        raise FileFault("a tensor is of no kind or shape")
    if array.nbytes != dtype.itemsize * int(np.prod(sizes, dtype=object)) or array.dtype != np.uint8:
        raise FileFault("a tensor has not as many bytes as its shape")
    flat = torch.from_numpy(array.copy()) if array.nbytes else torch.zeros(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(sizes).to(device)
