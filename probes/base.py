"""The contract of a probe: a cheap look at a denoiser call before it is decided, one feature per row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from dicache.errors import PartError
from dicache.types import Step


class View(NamedTuple):
    """What a probe may look at. It must not change any of it."""

    latent: Tensor
    """The denoiser's input, (R, ...)."""
    before: Tensor
    """The picture stream at the first block, (R, N, C); where blocks work in place it may have changed since."""
    after: Tensor
    """The picture stream after `depth` blocks; `before` at depth 0."""
    block: nn.Module
    """The first block, and what it was called with."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    step: Step


class Probe(ABC):
    depth: int
    """How many blocks must have run, 0 for none."""
    local: bool = False
    """Whether it looks at every site's own input instead of the denoiser's."""
    over_ranks: ClassVar[bool] = True
    """Whether parts of the tokens give parts of the feature: not where it makes one thing of all of them."""

    @property
    def sees_tokens(self) -> bool:
        """Whether it looks at more than the latent, at all: what several ranks may have parts of."""
        return True

    @abstractmethod
    def __call__(self, view: View) -> Tensor | None:
        """The feature, (R, ...), a tensor of its own: later blocks may work in place. None to measure nothing."""


def check_depth(probe: Probe) -> None:
    """Raises PartError where it does not say its `depth`, or that makes no sense."""
    name = type(probe).__name__
    try:
        depth = probe.depth
    except AttributeError as error:
        raise PartError(
            f"{name} does not say its depth. Expected how many blocks must have run, 0 for none."
        ) from error
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise PartError(f"{name}.depth is {depth!r}. Expected how many blocks must have run, 0 for none.")
