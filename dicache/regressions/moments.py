"""Sums over recorded runs from which coefficients are fitted, so that memory does not grow with the prompts. All are
float64; tokens and rows count alike.

    Moments      per step, gap and channel:  n, sum v_0, sum v, sum v_0^2, sum v_0 v        lines from before to after
    Increments   per channel:  sum dx^T dx, sum dx^T dv, and usual magnitudes               linear maps of changes
    WeightCuts   per channel:  usual magnitudes                                             a layer's own weights
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from dicache.extension import residual_sums

BANDS = 4
"""Of a run's steps, each with a head of its own."""


class Pair(NamedTuple):
    """One site at two steps of a run, `gap` apart: its values (R, N, C) and, where they are read, inputs (R, N, X)."""

    step: int
    """The later one."""
    gap: int
    after: Tensor
    before: Tensor
    input_after: Tensor | None = None
    input_before: Tensor | None = None


class Sums(ABC):
    first_branch: ClassVar[bool] = False
    """Whether only the branch that decides, the first of a step, is added."""

    @abstractmethod
    def add(self, pair: Pair) -> None: ...

    @abstractmethod
    def solved(self) -> dict[str, Tensor]:
        """Coefficients by name, float32 on the host."""


class Moments(Sums):
    """What a line needs. `change` is |v - v_0|_1 / |v|_1 of neighbouring steps, per row, summed."""

    steps: int
    longest: int
    sums: Tensor
    change: Tensor

    def __init__(self, steps: int, longest: int) -> None:
        self.steps, self.longest = steps, longest
        self.sums = self.change = torch.zeros(0)

    def add(self, pair: Pair) -> None:
        after, before = exact(pair.after), exact(pair.before)
        if not len(self.sums):
            self.sums = after.new_zeros(self.steps, self.longest, 5, after.shape[2])
            self.change = after.new_zeros(self.steps, 2)
        terms = [torch.ones_like(after), before, after, before * before, before * after]
        self.sums[pair.step, pair.gap - 1] += torch.stack([term.sum((0, 1)) for term in terms])
        if pair.gap == 1:
            sums = residual_sums(pair.before, pair.after).to(after.device, after.dtype)
            moved = sums[:, 0] / sums[:, 1].clamp(min=1e-30)
            self.change[pair.step] += torch.stack([moved.sum(), torch.ones_like(moved).sum()])

    def solved(self) -> dict[str, Tensor]:
        """Lines per step and gap."""
        a, b = line(self.sums)
        return {"a": stored(a), "b": stored(b)}


class StepMoments(Moments):
    def solved(self) -> dict[str, Tensor]:
        """Lines per step, whatever the gap, and the mean change from the step before."""
        a, b = line(self.sums.sum(1))
        change = self.change[:, 0] / self.change[:, 1].clamp(min=1)
        return {"gamma": stored(a - 1), "beta": stored(b), "change": stored(change)}


def line(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares v ~ a v_0 + b from (..., 5, C) moments: two of (..., C). a = 1 where v_0 did not vary, and b = 0
    where nothing was seen.
    """
    n, before, after, squares, products = sums.unbind(-2)
    count = n.clamp(min=1)
    mean_before, mean_after = before / count, after / count
    variance = squares / count - mean_before**2
    varied = variance > 1e-12 * squares / count
    a = torch.where(varied, (products / count - mean_before * mean_after) / torch.where(varied, variance, 1.0), 1.0)
    return a, mean_after - a * mean_before


class Increments(Sums):
    """What the ridge map of changes needs, of strength `ridge` relative to the mean square of a channel's change."""

    gram: Tensor
    cross: Tensor
    into: Tensor
    out: Tensor

    def __init__(self, ridge: float) -> None:
        self.ridge = ridge
        self.gram = self.cross = self.into = self.out = torch.zeros(0)

    def add(self, pair: Pair) -> None:
        assert pair.input_after is not None and pair.input_before is not None
        moved = exact(pair.input_after - pair.input_before).flatten(0, 1)
        changed = exact(pair.after - pair.before).flatten(0, 1)
        if not len(self.gram):
            self.gram, self.cross = (moved.new_zeros(moved.shape[1], t.shape[1]) for t in (moved, changed))
            self.into, self.out = (t.new_zeros(t.shape[1]) for t in (moved, changed))
        self.gram += moved.T @ moved
        self.cross += moved.T @ changed
        self.into += magnitudes(pair.input_after)
        self.out += magnitudes(pair.after)

    def weight(self) -> Tensor:
        """(X, C) float64; zero where the input never changed."""
        strength = self.ridge * self.gram.diagonal().mean()
        if not strength > 0:
            return torch.zeros_like(self.cross)
        eye = torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        solution: Tensor = torch.linalg.solve(self.gram + strength * eye, self.cross)
        return solution

    def solved(self) -> dict[str, Tensor]:
        return {"weight": stored(self.weight())}


class LowRankIncrements(Increments):
    """The same cut to `rank`, by singular values of the map between channels weighted with magnitude^alpha."""

    rank: int
    alpha: float

    def __init__(self, ridge: float, rank: int, alpha: float = 0.5) -> None:
        super().__init__(ridge)
        self.rank, self.alpha = rank, alpha

    def solved(self) -> dict[str, Tensor]:
        return cut(self.weight(), self.into, self.out, self.rank, self.alpha)


class WeightCuts(Sums):
    """Of one linear layer: its own weights, (C, X), cut to `rank` by the usual magnitudes of its channels."""

    def __init__(self, weight: Tensor, rank: int, alpha: float = 0.5) -> None:
        self.weight, self.rank, self.alpha = exact(weight), rank, alpha
        self.into, self.out = self.weight.new_zeros(self.weight.shape[1]), self.weight.new_zeros(len(self.weight))

    def add(self, pair: Pair) -> None:
        assert pair.input_after is not None
        if pair.gap == 1:
            self.into += magnitudes(pair.input_after)
            self.out += magnitudes(pair.after)

    def solved(self) -> dict[str, Tensor]:
        return cut(self.weight.T, self.into, self.out, self.rank, self.alpha)


def cut(weight: Tensor, into: Tensor, out: Tensor, rank: int, alpha: float) -> dict[str, Tensor]:
    """(X, C) as two factors, R^-1 [R W L]_r L^-1 with R and L the magnitudes of its channels to the power alpha."""
    into, out = (_importance(m) ** alpha for m in (into, out))
    left, values, right = torch.linalg.svd(into[:, None] * weight * out, full_matrices=False)
    down, up = left[:, :rank] * values[:rank], right[:rank]
    return {"down": stored(down / into[:, None]), "up": stored(up / out)}


class Innovations(Sums):
    """Of what lines miss, the output's by the probe's, in bands of the run's steps: an `Increments` each, and no map
    of a band of which nothing was seen.
    """

    depth: int
    steps: int
    bands: dict[int, Increments]

    def __init__(self, ridge: float, depth: int, steps: int) -> None:
        self.ridge, self.depth, self.steps, self.bands = ridge, depth, steps, {}

    def add(self, pair: Pair) -> None:
        band = pair.step * BANDS // self.steps
        self.bands.setdefault(band, Increments(self.ridge)).add(pair)

    def solved(self) -> dict[str, Tensor]:
        weights = {band: increments.weight() for band, increments in self.bands.items()}
        none = torch.zeros_like(next(iter(weights.values())))
        weight = torch.stack([weights.get(band, none) for band in range(BANDS)])
        return {"weight": stored(weight), "depth": stored(torch.tensor(float(self.depth)))}


def magnitudes(x: Tensor) -> Tensor:
    """Mean |x| over tokens, set to 0 .. 1 over the channels of each row, summed over rows: (R, N, C) -> (C,)."""
    mean = exact(x).abs().mean(1)
    low, high = mean.amin(1, keepdim=True), mean.amax(1, keepdim=True)
    return ((mean - low) / (high - low).clamp(min=1e-30)).sum(0)


def _importance(magnitude: Tensor) -> Tensor:
    """At least a thousandth of the largest; all alike where nothing stands out."""
    largest = magnitude.max()
    return magnitude.clamp(min=float(largest) / 1000) if largest > 0 else torch.ones_like(magnitude)


def exact(x: Tensor) -> Tensor:
    """float64, where the device has it."""
    return (x.cpu() if x.device.type == "mps" else x).detach().double()


def stored(x: Tensor) -> Tensor:
    return x.float().cpu().contiguous()
