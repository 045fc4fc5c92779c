"""Fitting gates (`dicache.approximators.fitted.sublayer_gates`): a logistic regression for every site and step, on what
went in and whether holding the value erred by more than a threshold. With n pairs of a pooled input z, standardised,
and a gap g,

    (w, b) = argmin  1/n sum log(1 + exp(-s (w . z + b_g)))  +  r/2 |w|^2  +  r_0/2 |b|^2,        s = 1 or -1

which is convex, so L-BFGS finds it from anywhere. r_0 only keeps b finite where all pairs agree.
"""

from collections import defaultdict
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from dicache.approximators.fitted.sublayer_gates import CERTAIN
from dicache.extension import residual_sums
from dicache.regressions.moments import Pair, Sums, stored

BIAS_RIDGE = 1e-4
"""r_0: where all pairs agree, b comes to about 6."""


def logistic(z: np.ndarray, groups: np.ndarray, over: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """w, (X,), and b, (G,), from inputs (n, X), groups 0 .. G - 1 and truths (n,) bool."""
    signs, channels = np.where(over, 1.0, -1.0), z.shape[1]
    members = np.eye(groups.max() + 1)[groups]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = weights[:channels], weights[channels:]
        margin = signs * (z @ w + members @ b)
        pull = -signs * np.exp(-np.logaddexp(0, margin)) / len(z)
        value = np.logaddexp(0, -margin).mean() + ridge / 2 * w @ w + BIAS_RIDGE / 2 * b @ b
        return value, np.concatenate([z.T @ pull + ridge * w, members.T @ pull + BIAS_RIDGE * b])

    solution = minimize(loss, np.zeros(channels + members.shape[1]), jac=True, method="L-BFGS-B")
    return solution.x[:channels], solution.x[channels:]


class GateSamples(Sums):
    """Of one site. Nothing adds up here: an input for every row and step stays, and an error for each of its gaps."""

    first_branch: ClassVar[bool] = True
    steps: int
    longest: int
    ridge: float
    threshold: float

    def __init__(self, steps: int, longest: int, ridge: float, threshold: float) -> None:
        self.steps, self.longest, self.ridge, self.threshold = steps, longest, ridge, threshold
        self.inputs: dict[int, list[Tensor]] = defaultdict(list)
        self.errors: dict[tuple[int, int], list[Tensor]] = defaultdict(list)

    def add(self, pair: Pair) -> None:
        assert pair.input_after is not None
        if pair.gap == 1:
            self.inputs[pair.step].append(pair.input_after.mean(1).float().cpu())
        squares = residual_sums(pair.after, pair.before)[:, 2:4].double().cpu()
        self.errors[pair.step, pair.gap].append((squares[:, 0] / squares[:, 1].clamp(min=1e-30)).sqrt())

    def solved(self) -> dict[str, Tensor]:
        channels = next(iter(self.inputs.values()))[0].shape[1]
        weight, bias = torch.zeros(self.steps, channels), torch.full((self.steps, self.longest), CERTAIN)
        for step in self.inputs:
            w, b = self._at(step)
            weight[step], bias[step, : len(b)] = w, b
        return {"weight": stored(weight), "bias": stored(bias)}

    def _at(self, step: int) -> tuple[Tensor, Tensor]:
        z = torch.cat(self.inputs[step]).double().numpy()
        gaps = [gap for gap in range(1, self.longest + 1) if (step, gap) in self.errors]
        over = np.concatenate([torch.cat(self.errors[step, gap]).numpy() > self.threshold for gap in gaps])
        mean, scale = z.mean(0), np.maximum(z.std(0), 1e-12)
        groups = np.repeat(np.arange(len(gaps)), len(z))
        w, b = logistic(np.tile((z - mean) / scale, (len(gaps), 1)), groups, over, self.ridge)
        return torch.from_numpy(w / scale), torch.from_numpy(b - (w * mean / scale).sum())
