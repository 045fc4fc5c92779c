"""Another estimator's answer through a map that only rises: what a calibration found that the true error is, without a
polynomial's waves (`dicache.presets.parts.polynomial`).

    e = y(x),        linear between knots, y_0 below the first and y_n above the last

`isotonic` fits the knots to pairs: the least-squares fit among all that never fall (pool adjacent violators).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dicache.errors import ModeError
from dicache.estimators.base import Estimator, Evidence
from dicache.types import Grid, Rows

Knots = tuple[tuple[float, float], ...]
"""(x, y) by rising x."""


@dataclass(frozen=True)
class Isotonic(Estimator[Any]):
    inner: Estimator[Any]
    knots: Knots

    def __post_init__(self) -> None:
        x, y = np.array(self.knots, dtype=float).reshape(-1, 2).T
        if not len(x) or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any() or not (y >= 0).all():
            raise ModeError(f"Isotonic(knots={self.knots}): expected rising x and y that never falls, from 0 on.")

    def held(self, feature: int, output: int, latent: int) -> int:
        return self.inner.held(feature, output, latent)

    def init(self, samples: int, n_approximators: int) -> Any:  # noqa: ANN401
        return self.inner.init(samples, n_approximators)

    def predict(self, evidence: Evidence, state: Any) -> Grid:  # noqa: ANN401
        x = self.inner.predict(evidence, state)
        mapped = torch.from_numpy(np.interp(x.numpy(), *np.array(self.knots).T))
        return torch.where(x.isfinite(), mapped, torch.inf)

    def observe(self, realised: Grid, evidence: Evidence, computed: Rows, state: Any) -> Any:  # noqa: ANN401
        return self.inner.observe(realised, evidence, computed, state)


def isotonic(x: Sequence[float], y: Sequence[float]) -> Knots:
    """The rising least-squares fit to pairs (x, y), a knot per block of pairs that share a value, at their mean x."""
    if not len(x):
        raise ModeError("isotonic() got no pairs to fit.")
    blocks: list[tuple[float, float, int]] = []  # mean x, mean y, count
    for here in sorted(zip(x, y, strict=True)):
        block = (float(here[0]), float(here[1]), 1)
        while blocks and (blocks[-1][1] >= block[1] or blocks[-1][0] >= block[0]):
            block = _pooled(blocks.pop(), block)
        blocks.append(block)
    return tuple((mean_x, mean_y) for mean_x, mean_y, _ in blocks)


def _pooled(a: tuple[float, float, int], b: tuple[float, float, int]) -> tuple[float, float, int]:
    count = a[2] + b[2]
    return (a[0] * a[2] + b[0] * b[2]) / count, (a[1] * a[2] + b[1] * b[2]) / count, count
