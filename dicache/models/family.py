"""What must be known of a kind of denoiser before parts of it are skipped. Data only; a user's model has one as well.

Skipping hands the blocks' shapes on and replaces the denoiser's output, so little need be known of the blocks: where
they are, what carries the latents, and what happens between two blocks.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import SupportsFloat

from dicache.errors import UnsupportedModelError
from dicache.models.skips import closed
from dicache.solvers.prediction import PREDICTIONS
from dicache.types import Site

STREAMS = ("hidden_states", "x", "visual_embed", "gen_seq", "vis")
TIMES = ("timestep", "timesteps", "t", "sigma")


class Batch(StrEnum):
    """What becomes of a batch in which some samples compute and some do not. Decisions are per sample either way."""

    SAMPLE = "per sample"
    """Samples that compute are gathered, run and scattered back."""
    TOGETHER = "per batch"
    """Blocks run for the whole batch or not at all."""


class Inside(StrEnum):
    """Which sites smaller than the evaluation may be skipped."""

    SPANS = "spans"
    """Any."""
    BLOCKS = "single blocks"
    """Blocks and sublayers on their own: other blocks read what comes out between them."""
    SKIPS = "between skips"
    """The same, and spans that hold both ends of every skip connection that begins in them (`dicache.models.skips`)."""
    NOTHING = "nothing"
    """None: what blocks take and give has not the samples on its first axis."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of denoiser. Raises UnsupportedModelError where `stacks` and `refused` are both empty, or both given,
    where one name stands for several, or where what it says of a hand-written loop makes no sense.
    """

    model: str
    """The name of its class."""
    stacks: Sequence[str] = ()
    """Paths of the lists of blocks, in order of execution."""
    streams: Sequence[str] = STREAMS[:1]
    """The blocks' arguments that are handed from block to block."""
    latents: Sequence[str] = ()
    """The denoiser's inputs that are denoised, as many as it returns; empty for the first floating tensor (or list of
    samples).
    """
    time: Sequence[str] = TIMES
    """What the denoiser's timestep may be called."""
    noise_schedule: Callable[[float], tuple[float, float]] | None = None
    """In a hand-written loop: signal and noise of the latent at a time. It is asked at all `times` when the family is
    made. None where that is read off the latents.
    """
    prediction: str = "epsilon"
    """What is predicted there: a name of `dicache.solvers.prediction.PREDICTIONS`."""
    times: Sequence[float] = ()
    """All times that the loop calls the denoiser at, in order, where `noise_schedule` is given: numbers in a list, an
    array or a tensor.
    """
    batch: Batch = Batch.SAMPLE
    inside: Inside = Inside.SPANS
    between: str = ""
    """What the denoiser's loop does between blocks, beside handing the streams on."""
    cacheless: str = ""
    """What the pipeline is called with for its blocks to write no cache of keys and values: a call that brings one is
    refused. Empty where they write none.
    """
    calls: int | None = None
    """Denoiser calls per step of the stock pipeline with guidance; None where that is not known."""
    refused: str = ""
    """Why it cannot be cached."""

    def __post_init__(self) -> None:
        lists = {"stacks": self.stacks, "streams": self.streams, "latents": self.latents, "time": self.time}
        for name, value in lists.items():
            if isinstance(value, str):
                raise UnsupportedModelError(
                    f"the family of {self.model} has {name}={value!r}. Expected names in a list: {name}=({value!r},)."
                )
        object.__setattr__(self, "times", self._numbers(self.times))
        if self.prediction not in PREDICTIONS:
            raise UnsupportedModelError(
                f"the family of {self.model} has prediction={self.prediction!r}. Expected one of "
                f"{', '.join(map(repr, PREDICTIONS))}."
            )
        if self.noise_schedule is not None and not self.times:
            raise UnsupportedModelError(
                f"the family of {self.model} has a noise_schedule and no times. Expected all times that the loop "
                "calls the denoiser at, in order: times=[...]."
            )
        if self.noise_schedule is not None:
            for time in self.times:
                self.level(time)
        if bool(self.stacks) == bool(self.refused):
            raise UnsupportedModelError(
                f"the family of {self.model} has {'stacks and a refusal' if self.refused else 'no stacks'}. "
                "Expected the paths of its lists of blocks, for example stacks=('blocks',), or why it is refused."
            )

    def _numbers(self, times: Iterable[SupportsFloat]) -> tuple[float, ...]:
        try:
            numbers = tuple(float(time) for time in times)
        except (TypeError, ValueError, RuntimeError) as error:  # what is not numbers, and rows of a tensor
            raise UnsupportedModelError(
                f"the family of {self.model} has times={times!r}. Expected numbers in a list, an array or a tensor."
            ) from error
        odd = [number for number in numbers if not math.isfinite(number)]
        if odd:
            raise UnsupportedModelError(f"the family of {self.model} has {odd[0]} among its times. Expected numbers.")
        return numbers

    def level(self, time: float) -> tuple[float, float]:
        """Signal and noise at a time, as `noise_schedule` says. Raises UnsupportedModelError where it says neither."""
        assert self.noise_schedule is not None
        said = self.noise_schedule(time)
        try:
            signal, noise = map(float, said)
        except (TypeError, ValueError, RuntimeError):
            signal = noise = math.nan
        if not (math.isfinite(signal) and math.isfinite(noise) and max(abs(signal), abs(noise)) > 0):
            raise UnsupportedModelError(
                f"the family of {self.model} has a noise_schedule that gives {said!r} at the time {time:g}. Expected "
                "two finite numbers, signal and noise of the latent there, such as (1 - t, t)."
            )
        return signal, noise

    def check(self, sites: Sequence[Site], depth: int, blocks: Sequence[str] = ()) -> None:
        """Raises UnsupportedModelError where `sites`, or a probe of `depth` blocks, would not see what they are made
        for. `blocks` are the paths of all blocks, in order of execution.
        """
        inside = [site for site in sites if site.inside_denoiser]
        if self.inside is Inside.NOTHING and (inside or depth):
            what = f"the site {inside[0].path}" if inside else f"a probe of {depth} blocks"
            raise UnsupportedModelError(
                f"{self.model} cannot have {what}: {self.between}. Use sites=Evaluation() and a probe of depth 0."
            )
        if depth and not any(site.modules for site in sites):
            raise UnsupportedModelError(
                f"a probe of {depth} blocks looks at all blocks of {self.model}, so none is left to skip. Use a probe "
                "of fewer, or of depth 0."
            )
        longer = [site for site in inside if len(site.modules) > 1]
        if self.inside is Inside.SKIPS:
            longer = [site for site in longer if not closed(site.modules, blocks)]
        if self.inside in (Inside.BLOCKS, Inside.SKIPS) and longer:
            alternative = ", Skips()" if self.inside is Inside.SKIPS else ""
            raise UnsupportedModelError(
                f"{self.model} cannot skip {longer[0].path} as one: {self.between}. Use sites=Spans(1){alternative} or "
                "Evaluation()."
            )
