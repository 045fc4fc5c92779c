"""Denoisers in closed form: the posterior mean of a density, which is what a perfectly trained network would predict.

    x_t = a x_0 + s eps,    p(x_0) = mean_i N(d_i, h^2),    r^2 = a^2 h^2 + s^2

    E[x_0 | x_t] = a h^2 / r^2 x_t + s^2 / r^2 sum_i w_i d_i,    w = softmax(-|x_t - a d_i|^2 / (2 r^2))

around the data d_i: scikit-learn's digits (1,797 pictures of 8 x 8, from the UCI repository) and 4,096 patches of 12 x
12 of its two photographs (CC BY), in [-1, 1]. h sqrt(dimensions) is the distance between nearest data in the median:
with h = 0 a latent would be drawn onto one of them, and what a cache errs by would be nothing or all. Played as eps, v
and flow; needs scikit-learn (`pip install 'dicache[bench]'`).
"""

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

Prediction = Literal["epsilon", "v_prediction", "flow"]
Data = Literal["digits", "patches"]
NOISE: dict[str, Any] = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
PATCH, PATCHES = 12, 4096


@cache
def data(name: Data) -> Tensor:
    """(N, C, H, W) in [-1, 1]. Raises ImportError where scikit-learn is not installed."""
    from sklearn import datasets

    if name == "digits":
        return torch.from_numpy(datasets.load_digits().images).float()[:, None] / 8 - 1
    random, cut = np.random.default_rng(0), []
    photographs = datasets.load_sample_images().images
    for i in range(PATCHES):
        photograph = photographs[i % len(photographs)]
        top, left = (random.integers(side - PATCH) for side in photograph.shape[:2])
        cut.append(photograph[top : top + PATCH, left : left + PATCH])
    return torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Mean(nn.Module):
    """Of x_0 given x (B, 1, D), at these shares of signal and noise."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points: nn.Parameter = nn.Parameter(points, requires_grad=False)
        nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).amin(1)
        self.variance: float = nearest.median().square().item() / points.shape[1]

    def forward(self, hidden_states: Tensor, signal: float, noise: float) -> Tensor:
        spread = signal**2 * self.variance + noise**2
        near = signal * (hidden_states @ self.points.T) - 0.5 * signal**2 * self.points.square().sum(1)
        mean = torch.softmax(near / spread, dim=-1) @ self.points
        return (signal * self.variance * hidden_states + noise**2 * mean) / spread


class PosteriorMean(nn.Module):
    """Predicts what its scheduler asks for, of latents (B, C, H, W) at one time."""

    def __init__(self, name: Data, prediction: Prediction) -> None:
        super().__init__()
        self.prediction = prediction
        self.blocks: nn.ModuleList = nn.ModuleList([Mean(data(name).flatten(1))])
        self.square: Tensor = DDIMScheduler(**NOISE).alphas_cumprod.double()

    def forward(self, latent: Tensor, timestep: Tensor) -> Tensor:
        signal, noise = self.shares(timestep.flatten()[0])
        x = latent.flatten(1)[:, None]
        for block in self.blocks:
            x = block(hidden_states=x, signal=signal, noise=noise)
        clean = x.reshape(latent.shape)
        eps = (latent - signal * clean) / noise
        if self.prediction == "flow":
            return eps - clean
        return eps if self.prediction == "epsilon" else signal * eps - noise * clean

    def shares(self, time: Tensor) -> tuple[float, float]:
        """Of signal and noise."""
        if self.prediction == "flow":
            noise = min(max(float(time) / 1000, 1e-3), 1 - 1e-6)
            return 1 - noise, noise
        square = float(self.square[int(time)])
        return square**0.5, (1 - square) ** 0.5
