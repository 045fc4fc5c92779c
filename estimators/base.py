"""The contract of an estimator: predict before, observe after, state in and out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from dicache.ranks.sums import ALONE, Pair, SharedSums
from dicache.types import Grid, Rows, Step

S = TypeVar("S")


def _none(index: int) -> Tensor | None:
    return None


class Evidence(NamedTuple):
    """What is known about a step before it is computed. Tensors of the model are those of the branch that is called
    first, one row per sample.
    """

    growth: Grid
    """(B, A): each approximator's error law at this step, nan where its history is too short."""
    innovation: Rows
    """(B,): relative error of extrapolating the probe's feature to this step, nan without a probe."""
    innovation_growth: Rows
    """(B,): the error law of that extrapolation."""
    typical: float | None = None
    """The constant that the laws usually have here (`dicache.planning.error_law`); None where nothing is known."""
    step: Step | None = None
    latent: Tensor | None = None
    """The denoiser's input, (B, ...)."""
    feature: Tensor | None = None
    """What the probe measured, (B, ...); None without a probe."""
    guess: Callable[[int], Tensor | None] = _none
    """guess(a): what approximator a would hand out, (B, ...); None where its history is too short. Costs a pass."""
    output: Tensor | None = None
    """What the step gave, (B, ...), all branches mixed; only when observing, and None where not all branches were
    computed.
    """
    weights: Grid | None = None
    """(B, A): by how much predicted errors count where approximators are compared; None for evenly."""
    timetable: bool = True
    """Whether the rest of the run is known; in hand-written loops it is not."""
    site: str = ""
    """The path of the site that is decided."""
    sums: SharedSums = ALONE
    """Sums of two tensors of the model: over all ranks, where each of them has a part."""


class Estimator(ABC, Generic[S]):
    @property
    def over_ranks(self) -> bool:
        """Whether it reads tensors of the model through `evidence.sums` alone, so that ranks which have parts of the
        tokens are told the same.
        """
        return False

    def pairs(self, evidence: Evidence, state: S) -> Sequence[Pair]:
        """What `predict` will hold against each other; asked for only where that lies on several ranks."""
        return ()

    @property
    def reads_innovation(self) -> bool:
        """Whether it asks how well the probe itself could be extrapolated: two features are kept for that."""
        return False

    def own_bytes(self, feature: int, output: int, latent: int) -> int:
        """Bytes that its state comes to, given those of one feature, output and latent of all samples."""
        return 0

    @abstractmethod
    def init(self, samples: int, n_approximators: int) -> S:
        """State that knows nothing about B samples and A approximators."""

    @abstractmethod
    def predict(self, evidence: Evidence, state: S) -> Grid:
        """Relative error of each approximator's output, (B, A); inf where unknown."""

    @abstractmethod
    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: S) -> S:
        """Every step once it is over, computed or not: learn from those that were `computed`, (B,) bool. `realised`,
        (B, A), is what each approximator would have been wrong by, nan where that is not known.
        """
