"""How much harder than the calibration's median prompt is this sample? One amplitude per sample and approximator, in
units of what was measured for this very step.

A guess that was wrong by e, G steps after the computed step t, which lies D after the one before it, says

    rho = e / turning[a, t, D, G],        s  <-  s^(1 - g) rho^g,        g = max(gain, 1 / (n + weight))

as in `estimators.amplitude`, with the profile's medians in the place of the law, which is a curve through them: what is
left to learn is the sample. Where no profile fits, or one whose runs were planned by the law, this is `Amplitude`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from dicache.estimators.amplitude import Amplitude, Amplitudes
from dicache.estimators.base import Estimator, Evidence
from dicache.promise.choose_profile import ProfileChoice
from dicache.promise.profile import Profile
from dicache.types import Grid, Rows


class Learned(NamedTuple):
    law: Amplitudes
    """What `Amplitude` would know."""
    log: Grid
    """log s, (B, A)."""
    seen: Grid
    """n, (B, A)."""
    last: Rows
    """The last computed step and the one before it, -1 for none, (B,) int64."""
    before: Rows


@dataclass(frozen=True)
class Calibrated(Estimator[Learned]):
    choice: ProfileChoice
    gain: float = 0.1
    weight: float = 6.0
    """How many observations the median prompt is worth."""
    law: Amplitude = field(default_factory=Amplitude)

    def init(self, samples: int, n_approximators: int) -> Learned:
        zero, none = torch.zeros(samples, n_approximators, dtype=torch.float64), torch.full((samples,), -1)
        return Learned(self.law.init(samples, n_approximators), zero, zero.clone(), none, none.clone())

    def predict(self, evidence: Evidence, state: Learned) -> Grid:
        profile = self._profile(evidence)
        if profile is None:
            return self.law.predict(evidence, state.law)
        predicted = state.log.exp() * _error_rates(profile, evidence, state)
        return torch.where(predicted.isfinite() & (state.seen > 0), predicted, torch.inf)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Learned) -> Learned:
        log, seen, profile = state.log, state.seen, self._profile(evidence)
        if profile is not None:
            ratio = (realised / _error_rates(profile, evidence, state)).log()
            new = computed[:, None] & ratio.isfinite()
            gain = (1 / (seen + self.weight)).clamp(min=self.gain)
            log, seen = torch.where(new, log + gain * (ratio - log), log), seen + new
        index = -1 if evidence.step is None else evidence.step.index
        last = torch.where(computed, index, state.last)
        before = torch.where(computed, state.last, state.before)
        return Learned(self.law.observe(realised, evidence, computed, state.law), log, seen, last, before)

    def _profile(self, evidence: Evidence) -> Profile | None:
        """The one whose measured prices hold."""
        step, guidance = evidence.step, evidence.guidance
        if step is None or guidance is None:
            return None
        profile = self.choice.fitting(
            step.timetable, float(guidance.median()), evidence.negative_conditions, needed=False
        )
        return None if profile is None or profile.facts.prices == "law" else profile


def _error_rates(profile: Profile, evidence: Evidence, state: Learned) -> Grid:
    """What the median prompt's error is at this step after these samples' computed steps, (B, A); nan where unknown."""
    assert evidence.step is not None
    table = profile.arrays["turning"]
    _, _, reach, longest = table.shape
    known = (state.before >= 0) & (evidence.step.index - state.last <= longest)
    d = (state.last - state.before).clamp(1, reach) - 1
    g = (evidence.step.index - state.last).clamp(1, longest) - 1
    found = np.asarray(table[:, state.last.clamp(min=0).numpy(), d.numpy(), g.numpy()], dtype=float)
    return torch.where(known[:, None], torch.from_numpy(found.T), torch.nan)
