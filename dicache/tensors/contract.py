"""Holding what a part gives against its contract: parts are anybody's, and a wrong shape is broadcast into a wrong
decision, or fails far from where it was made.
"""

from collections.abc import Sequence
from functools import cache

from torch import Tensor

from dicache.errors import PartError
from dicache.tensors.tree import Tree


@cache
def is_users(part: type) -> bool:
    """Whether this class of parts is not one of ours, whose contracts are tested."""
    return part.__module__.partition(".")[0] != "dicache"


def check_tensor(value: Tree, shape: Sequence[int], said_by: str, meaning: str) -> None:
    """Raises PartError where it is no tensor of this shape; from a -1 on, all sizes and numbers of axes are right."""
    fixed = list(shape[: list(shape).index(-1)]) if -1 in shape else list(shape)
    if isinstance(value, Tensor) and list(value.shape[: len(fixed)]) == fixed:
        if len(fixed) < len(shape) or value.ndim == len(shape):
            return
    kind = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    sizes = ", ".join("..." if size < 0 else str(size) for size in shape)
    raise PartError(f"{said_by} gave {kind}. Expected a tensor ({sizes}{',' * (len(shape) == 1)}): {meaning}.")


def check_own(value: Tree, shown: Sequence[Tensor], said_by: str) -> None:
    """Raises PartError where it is one of the tensors that were `shown`, which are not the part's to hand on."""
    if any(value is tensor for tensor in shown):
        raise PartError(f"{said_by} gave a tensor that it was shown. Expected one of its own, for example its clone().")
