"""Another probe's feature with the noise filtered out of it (SeaCache, arXiv 2602.18993): far from the end the fine
spatial frequencies of a latent are noise, and their change says nothing about the picture.

    G(f) = a S(f) / (a^2 S(f) + b^2) / mean G,        S(f) ~ f^-p,  x = a data + b noise

is Wiener's filter for data with power spectrum S, scaled to a mean gain of 1. Only a / b matters then, and lambda = log
(a / b) is half the step's log SNR. S has mean 1 over f > 0, as data of unit variance have; f = 0 passes (this scale of
S is ours, the paper's was not to be had). In a hand-written loop, where a / b is not known, nothing is filtered.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dicache.probes.base import Probe, View
from dicache.tensors.token_grid import sides


@dataclass(frozen=True)
class SpectrumFiltered(Probe):
    inner: Probe
    power: float = 2.0
    """p: 2 for images, 3 for video."""
    size: tuple[int, int] | None = None
    """Rows and columns of tokens; None for a square."""

    over_ranks = False

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.inner.depth

    def __call__(self, view: View) -> Tensor | None:
        """(R, N, C) to the same. Raises UnsupportedModelError where the tokens do not fill the size."""
        feature, timetable = self.inner(view), view.step.timetable
        if feature is None or timetable is None:
            return feature
        height, width = sides(feature.shape[1], self.size)
        image = feature.float().unflatten(1, (height, width))
        spectrum = torch.fft.rfft2(image, dim=(1, 2))
        gain = gains(height, width, self.power, timetable.half_log_snrs[view.step.index]).to(
            spectrum.device, torch.float32
        )
        filtered = torch.fft.irfft2(spectrum * gain[:, :, None], s=(height, width), dim=(1, 2))
        return filtered.flatten(1, 2).to(feature.dtype)


def gains(height: int, width: int, power: float, half_log_snr: float) -> Tensor:
    """G at the frequencies of a real FFT, (height, width // 2 + 1); the mean is over all height x width."""
    rows, columns = torch.fft.fftfreq(height).double()[:, None], torch.fft.fftfreq(width).double()[None, :]
    spectrum = (rows**2 + columns**2).sqrt() ** -power
    spectrum = spectrum / spectrum[spectrum.isfinite()].mean() if height * width > 1 else spectrum
    gain = 1 / (1 + math.exp(-2 * half_log_snr) / spectrum)
    return (gain / gain.mean())[:, : width // 2 + 1]
