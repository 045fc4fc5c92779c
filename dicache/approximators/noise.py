"""Order 1 in the noise: what is extrapolated is the noise that the outputs stand for, and the output that the step
needs is read off the latent as it is now.

    eps_j = a_j x_j + b_j v_j
    eps(sigma) ~ eps_0 + alpha (eps_0 - eps_1) tau / D,        alpha = exp(-(tau + D) / memory)
    v(sigma) ~ (eps(sigma) - a x) / b

tau and D in sigma for the line, or `evenly`, in half the logarithm of signal over noise, as always for alpha. For flow
matching a = 1 and b = 1 - sigma; where a denoiser predicts noise, a = 0 and b = 1. The noise that a sample stands for
changes less along its way than its velocity, and the latent that the guess is made for already carries what was wrong
before: the same schedules lose 0.7 to 1.0 of what they lose with the velocity (reference model, 28 steps, shift 1 and
3). Over long gaps a slope is worth less than over short ones: fading nearly halved the median error of a schedule with
8 of 28 steps and added a fifth to that of one with 14. Along half log SNR a line of the noise misses
0.2 to 0.6 of what one of the output does over gaps of two and four steps where a network predicts v under variance
preserving noise, and 0.1 to 0.8 of it early in flows (docs/notebook/2026-11-29-lines-and-where-to-compute.md).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.extension import combine
from dicache.planning.error_law import GUIDED_FROM
from dicache.tensors.history import History
from dicache.types import Action, Rows


def predicted(output: Tensor, latent: Tensor) -> Tensor:
    """The part of an output that is a prediction: learned variances, behind it along the channels, are no latent."""
    channels = latent.shape[1]
    if output.shape == latent.shape or output.shape != (*latent.shape[:1], 2 * channels, *latent.shape[2:]):
        return output
    return output[:, :channels]


def noise_of(latent: Tensor, output: Tensor, noise: tuple[float, float]) -> Tensor:
    """a * latent + b * output, and learned variances behind it as they are; the output itself where it has another
    shape (extra input channels).
    """
    own = predicted(output, latent)
    if latent.shape != own.shape:
        return output
    mixed = combine((latent.to(output.dtype), own), torch.tensor([noise]).expand(len(output), 2))
    return mixed if own is output else torch.cat([mixed, output[:, latent.shape[1] :]], dim=1)


UNGUIDED, UNGUIDED_FADING = 2.5, 1.3
"""How much holding and a line that fades count beside a line, without guidance."""
BEND, LEAST = 0.6, 0.5
"""Up to which tau + D holding counts as a line does with guidance, and what it counts at least."""


@dataclass(frozen=True)
class ExtrapolateNoise(Approximator):
    memory: float = 2.5
    """In half log signal-to-noise; `math.inf` for the plain line."""
    evenly: bool = False
    """Whether the line is drawn along half log signal-to-noise, where it is known; new noise makes it stand still."""

    action = Action.EXTRAPOLATE
    needs = 2
    reads_noise = True
    over_ranks = True

    def guess(self, histories: Histories, target: Target) -> Tensor:
        newest, before = histories.noises.values[:2]
        times, time = self._axis(histories.noises, target)
        ratio = (time - times[0]) / (times[0] - times[1]) * self._fading(histories.noises, target)
        ratio = ratio.nan_to_num(0.0, 0.0, 0.0)
        line = torch.stack([1 + ratio, -ratio], dim=1)
        return _read_off((newest, before), line, target)

    def _axis(self, history: History, target: Target) -> tuple[Tensor, float]:
        """The times of what is remembered, (K, R), and that of the step."""
        if self.evenly and target.time is not None:
            return history.times, target.time
        return history.sigmas, target.sigma

    def _fading(self, history: History, target: Target) -> Rows:
        """alpha."""
        unfaded = torch.ones_like(history.sigmas[1])
        if target.timetable is None or (math.isinf(self.memory) and not self.evenly):
            return unfaded
        if target.timetable.random:
            return torch.zeros_like(unfaded)
        if math.isinf(self.memory) or target.time is None:
            return unfaded
        return (-(target.time - history.times[1]).abs() / self.memory).exp()

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return ((sigma - sigmas[0]) * (sigma - sigmas[1])).abs()  # as of any line

    def weigh(self, times: Tensor, time: float, guidance: Rows) -> Rows:
        """A line that fades is half-way to holding (`HoldNoise`)."""
        even = super().weigh(times, time, guidance)
        fades = self.evenly and math.isfinite(self.memory)
        return even.where(guidance > GUIDED_FROM, UNGUIDED_FADING) if fades else even


class HoldNoise(Approximator):
    """Order 0: the newest noise again, and the data estimate that goes with it, which is what a solver with fewer steps
    holds; the same as holding the output for flows and for networks that predict noise. Error ~ |tau|.

    What a held value is wrong by points back along the path, gap after gap, and adds up; what a line misses changes
    sign. So where both are predicted to err alike at the end of a gap a line is better, unless guidance bends the path
    and the gap is long. Held against others its predicted error counts

        2.5 times without guidance,        min(1, max(0.5, 0.6 / (tau + D))) times with it

    tau and D in half log signal-to-noise (docs/notebook/2026-11-29-lines-and-where-to-compute.md).
    """

    action = Action.REUSE
    needs = 1
    reads_noise = True
    over_ranks = True

    def guess(self, histories: Histories, target: Target) -> Tensor:
        newest = histories.noises.values[0]
        once = torch.ones(len(newest), 1, dtype=torch.float64)
        return _read_off((newest,), once, target)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return (sigma - sigmas[0]).abs()

    def weigh(self, times: Tensor, time: float, guidance: Rows) -> Rows:
        if len(times) < 2:
            return super().weigh(times, time, guidance)
        bending = (BEND / (time - times[1]).abs()).nan_to_num(1.0).clamp(min=LEAST, max=1.0)
        return bending.where(guidance > GUIDED_FROM, UNGUIDED)


def _read_off(noises: tuple[Tensor, ...], weights: Tensor, target: Target) -> Tensor:
    """The output at `target` of this sum of noises, (R, ...) each, with weights (R, K): (sum - a x) / b, and what lies
    behind the prediction as the same sum of it; the sum itself where latents have another shape.
    """
    newest = noises[0]
    latent = newest if target.latent is None else target.latent
    own = [predicted(noise, latent) for noise in noises]
    if target.latent is None or latent.shape != own[0].shape:
        return combine(noises, weights)
    a, b = target.noise
    parts = torch.cat([weights, torch.full_like(weights[:, :1], -a)], dim=1) / b
    guess = combine((*own, latent.to(newest.dtype)), parts)
    if own[0] is newest:
        return guess
    channels = latent.shape[1]
    return torch.cat([guess, combine([noise[:, channels:] for noise in noises], weights)], dim=1)
