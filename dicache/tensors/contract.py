"""Holding what a part gives against its contract: parts are anybody's, and a wrong shape is broadcast into a wrong
decision, or fails far from where it was made.
"""

from collections.abc import Sequence

from torch import Tensor

from dicache.errors import PartError
from dicache.tensors.tree import Tree


def check_tensor(given: Tree, shape: Sequence[int], said_by: str, meaning: str) -> None:
    """Raises PartError where it is no tensor of this shape; -1 for any size, and further axes are free after it."""
    if isinstance(given, Tensor) and _fits(given.shape, shape):
        return
    kind = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
    sizes = ", ".join("..." if size < 0 else str(size) for size in shape)
    raise PartError(f"{said_by} gave {kind}. Expected a tensor ({sizes}{',' * (len(shape) == 1)}): {meaning}.")


def _fits(given: Sequence[int], shape: Sequence[int]) -> bool:
    if -1 not in shape:
        return tuple(given) == tuple(shape)
    fixed = tuple(shape[: list(shape).index(-1)])
    return tuple(given[: len(fixed)]) == fixed


def check_own(given: Tree, others: Sequence[Tensor], said_by: str) -> None:
    """Raises PartError where it is one of the `others` itself, which are not the part's to hand on."""
    if any(given is other for other in others):
        raise PartError(f"{said_by} gave a tensor that it was shown. Expected one of its own, for example its clone().")
