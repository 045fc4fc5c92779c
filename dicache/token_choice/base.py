"""The contract of a choice of tokens: at a step that is skipped, which tokens of each sample run all the same.

    choose(seen, state) -> (mask, state)     (B, N) bool, True for the tokens that run
    spread(tokens, guess, mask, state)       what the others take over from those that ran; often nothing

B counts samples, N the tokens of their pictures, C what a token holds. A sample's choice goes by its own rows alone, so
it is the same in any batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from dicache.errors import ModeError


class SeenTokens(NamedTuple):
    """What a run has shown of its tokens when a step is about to skip."""

    index: int  # type: ignore[assignment]  # shadows tuple.index
    """The step's."""
    seeds: Sequence[int]
    """A number of each sample that is its own in any batch, read off its first latent; B."""
    errors: Tensor
    """What the guess of a token's output was off by when the token last ran, L2, (B, N); 0 before that is known."""
    waited: Tensor
    """Steps since a token last ran, 1 or more, (B, N)."""
    computed: Sequence[int]
    """The step at which a sample was last computed, B."""
    entering: Tensor | None = None
    """What goes into the first block, (B, N, C); None unless the choice reads it."""
    entering_before: Tensor | None = None
    """The same at the step before."""
    leaving: Tensor | None = None
    """What the last block gave where a sample was last computed, (B, N, C); None unless the choice reads it."""

    @property
    def shape(self) -> tuple[int, int]:
        samples, tokens = self.errors.shape
        return samples, tokens


class TokenChoice(ABC):
    reads_entering: ClassVar[bool] = False
    reads_leaving: ClassVar[bool] = False

    @abstractmethod
    def choose(self, seen: SeenTokens, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        """Which tokens run, (B, N) bool, and the state to go on with, None at first."""

    def spread(self, tokens: Tensor, guess: Tensor, mask: Tensor, state: Any) -> Tensor:  # noqa: ANN401
        """The output of all tokens, (B, N, D): of those of `mask`, (B, N) bool, what ran, in `tokens`; of the others
        what they are guessed to be, in `guess`, or what they take over.
        """
        return tokens


def check_share(choice: TokenChoice, share: float) -> None:
    """Raises ModeError for a share of tokens outside [0, 1]."""
    if not 0 <= share <= 1:
        raise ModeError(f"{choice}: expected a share of the tokens from 0 to 1.")


def count_of(share: float, tokens: int) -> int:
    """How many tokens a share is; at least one of any share above 0."""
    return min(tokens, max(int(share > 0), round(share * tokens)))


def largest(scores: Tensor, share: float) -> Tensor:
    """The tokens with the largest scores, (B, N) to (B, N) bool; of equal ones the first."""
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : count_of(share, scores.shape[1])]
    return scores.new_zeros(scores.shape).bool().scatter(1, order, True)
