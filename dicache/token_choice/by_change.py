"""FastCache's split of tokens (arXiv 2505.20353): those whose input moved since the step before run, the rest stands
still.

    S_n = ||x_n - x'_n||^2,        token n runs where  S_n > motion * max S

or, with `level`, where a chi-square test says that it moved by more than the sample's typical token,

    S_n / s2 > chi2_{C, 1 - level},        s2 = median S / C

The paper's test has no variance in it: as written it accepts any change. Here it is that of the median token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dicache.errors import ModeError
from dicache.tensors.norms import change_per_token
from dicache.token_choice.base import SeenTokens, TokenChoice


@dataclass(frozen=True)
class InputChange(TokenChoice):
    """As many tokens run as moved, so samples of a batch run as many as the one with most, each its own ones again.
    Raises ModeError for numbers outside [0, 1].
    """

    motion: float = 0.1
    level: float | None = None

    reads_entering = True

    def __post_init__(self) -> None:
        if not 0 <= self.motion <= 1 or not 0 < (0.5 if self.level is None else self.level) < 1:
            raise ModeError(f"{self}: expected motion from 0 to 1 and a level between 0 and 1.")

    def choose(self, seen: SeenTokens, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        assert seen.entering is not None
        if seen.entering_before is None:
            return torch.ones_like(seen.errors, dtype=torch.bool), state
        moved = change_per_token(seen.entering, seen.entering_before) ** 2
        if self.level is None:
            return moved > self.motion * moved.amax(1, keepdim=True), state
        width = seen.entering.shape[2]
        variance = moved.median(1, keepdim=True).values / width
        return moved > variance * chi_square(1 - self.level, width), state


def chi_square(probability: float, freedom: int) -> float:
    """Its quantile, to three digits where `freedom` is 10 or more (Wilson and Hilferty, 1931)."""
    normal = float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
    ninth = 2 / (9 * freedom)
    return float(freedom * (1 - ninth + normal * ninth**0.5) ** 3)
