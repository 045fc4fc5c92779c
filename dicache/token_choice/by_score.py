"""TokenCache (arXiv 2409.18523): a small predictor, trained on the model, scores every token, and the best run.

    s_n = w . x_n        x_n: what goes into the first block

The paper trains a network together with the images; here w is a ridge regression of the logarithm of the realised error
on the token, which has a closed form and needs a few runs (`dicache.regressions.token_scores`). Only differences within
a sample count, so there is no constant.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dicache.errors import ModeError, UnsupportedModelError
from dicache.token_choice.base import SeenTokens, TokenChoice, check_share, largest


@dataclass(frozen=True, eq=False)
class TokenScore(TokenChoice):
    """Raises ModeError for a share outside [0, 1] or weights that are no vector, UnsupportedModelError where tokens
    have another width.
    """

    weights: Tensor
    """w, (C,)."""
    share: float = 0.25

    reads_entering = True

    def __post_init__(self) -> None:
        check_share(self, self.share)
        if self.weights.ndim != 1:
            raise ModeError(f"the weights are {tuple(self.weights.shape)}. Expected one number a channel.")

    def choose(self, seen: SeenTokens, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        assert seen.entering is not None
        if seen.entering.shape[2] != len(self.weights):
            raise UnsupportedModelError(
                f"the score was fitted on tokens of {len(self.weights)} channels, and these have "
                f"{seen.entering.shape[2]}. Fit one on this model."
            )
        scores = (seen.entering.float() * self.weights.to(seen.entering.device)).sum(2)
        return largest(scores, self.share), state
