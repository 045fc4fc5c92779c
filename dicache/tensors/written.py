"""Whether tensors were written to in place. Torch counts what is written, and the count is read for nothing; tensors of
`torch.inference_mode` have none, so a copy of theirs is held against them, which the host waits for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Unwritten:
    """`tensors` as they are at this moment. Where they are not `copied`, those without a count are taken for written:
    nobody knows.
    """

    def __init__(self, tensors: Sequence[Tensor], *, copied: bool = True) -> None:
        self.counts: list[tuple[Tensor, int]] = [(t, t._version) for t in tensors if not t.is_inference()]
        uncounted = [t for t in tensors if t.is_inference()]
        self.counted: bool = copied or not uncounted
        self.copies: list[tuple[Tensor, Tensor]] = [(t, t.clone()) for t in uncounted] if copied else []

    @property
    def changed(self) -> bool:
        """Whether one of them was written to since, by its count or by its values."""
        if not self.counted or any(t._version != count for t, count in self.counts):
            return True
        return not all(same(t, copy) for t, copy in self.copies)


def same(one: Tensor, other: Tensor) -> bool:
    """What is not a number in both is the same."""
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())
