"""What a profile is of, which a run must share with it, and the names of what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dicache.planning.error_law import RULE
from dicache.types import LATENT

LOSS = "loss."
LATENT_LOSS = LOSS + LATENT
NEEDED = ("levels", "estimate", "work", LATENT_LOSS)
"""Arrays, none of which holds a number below 0. The others are losses in further metrics."""
GAINS, GAIN_TIMES = "gains", "gains.half_log_snr"
"""Arrays that profiles of sites below the whole evaluation have (`dicache.planning.gains`): (K, S) and (K,)."""


@dataclass(frozen=True)
class Facts:
    """What a run must share with the calibration for the promise to hold."""

    model: str
    """Which denoiser (`dicache.models.identity`)."""
    scheduler: str
    sigmas: tuple[float, ...]
    """Per step, as the run's timetable has them."""
    guidance: float
    """Weight of the strongest branch; 1 without guidance."""
    rule: int = RULE
    """By which rule they were decided (`dicache.planning.error_law`)."""
    negative_conditions: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """What the other branches of guidance were conditioned by (`dicache.models.conditioning`), such as an empty
    negative prompt, where it was the same for all prompts.
    """
    size: tuple[int, ...] = ()
    """Of a sample's latent, as the denoiser gets it; empty for any: files of earlier versions do not say."""
    controls: tuple[str, ...] | None = None
    """Which inputs steer it beside the prompt (`dicache.models.watched_inputs.controls_among`); None for any."""
    parts: str = ""
    """Of which composition it is (`Config.parts`), where that is not what `enable` composes for a budget."""

    @property
    def steps(self) -> int:
        return len(self.sigmas)
