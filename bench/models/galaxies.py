"""Trained networks of somebody else: galaxygrad's score models of galaxies (MIT licence, arXiv 2409.14247), an MLP
mixer on patches of 4 by 4 pixels, (B, 1, 64, 64) in and out,

    s(x, t) = grad log p_t(x),    x = exp(-t / 2) x_0 + sqrt(1 - exp(-t)) eps,    0 <= t <= 10

so eps = -sqrt(1 - exp(-t)) s(x, t), and every other prediction is a mixture of that and of the latent. Their weights
are read from the wheel without importing it, which would need JAX: `pip install --no-deps galaxygrad==0.1.9`. A file of
them is the arrays of numpy one after the other, in the order in which the layers are listed here.
"""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.LayerNorm
Solver = Literal["bare", "eps", "v", "flow", "flow 3"]
SOLVERS: tuple[Solver, ...] = ("bare", "eps", "v", "flow", "flow 3")
NETS = ("hsc", "ZTF")
SIZE, PATCH, WIDTH, HIDDEN, DEPTH, LATEST = 64, 4, 64, 512, 4, 10.0
TRAINED = 1000
"""Times of the schedulers' tables."""


class Mlp(nn.Module):
    widen: nn.Linear
    narrow: nn.Linear

    def __init__(self, size: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(size, HIDDEN), nn.Linear(HIDDEN, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(torch.relu(self.widen(x)))


class MixerBlock(nn.Module):
    """(B, channels, patches) in and out."""

    over_patches: Mlp
    over_channels: Mlp
    norm_patches: nn.LayerNorm
    norm_channels: nn.LayerNorm

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.over_patches, self.over_channels = Mlp(patches), Mlp(WIDTH)
        self.norm_patches, self.norm_channels = nn.LayerNorm((WIDTH, patches)), nn.LayerNorm((patches, WIDTH))

    def forward(self, hidden_states: Tensor) -> Tensor:
        mixed = hidden_states + self.over_patches(self.norm_patches(hidden_states))
        mixed = mixed.transpose(1, 2)
        return (mixed + self.over_channels(self.norm_channels(mixed))).transpose(1, 2)

    def layers(self) -> Iterator[Layer]:
        for mlp in (self.over_patches, self.over_channels):
            yield from (mlp.widen, mlp.narrow)
        yield from (self.norm_patches, self.norm_channels)


class GalaxyNet(nn.Module):
    """Predicts what `solver` asks for, at the time that its scheduler counts in; bare, eps at its own t."""

    def __init__(self, solver: Solver = "bare") -> None:
        super().__init__()
        patches = (SIZE // PATCH) ** 2
        self.solver: Solver = solver
        self.conv_in: nn.Conv2d = nn.Conv2d(2, WIDTH, PATCH, stride=PATCH)
        self.conv_out: nn.ConvTranspose2d = nn.ConvTranspose2d(WIDTH, 1, PATCH, stride=PATCH)
        self.blocks: nn.ModuleList = nn.ModuleList(MixerBlock(patches) for _ in range(DEPTH))
        self.norm: nn.LayerNorm = nn.LayerNorm((WIDTH, patches))

    def forward(self, latent: Tensor, timestep: Tensor) -> Tensor:
        t = self._own_time(timestep.double().flatten()[0])
        signal, noise = math.exp(-t / 2), math.sqrt(-math.expm1(-t))
        scale = signal + noise if self.solver.startswith("flow") else 1.0  # a straight path, scaled onto the circle
        x = latent * scale
        plane = torch.full_like(x, t / LATEST)
        hidden = self.conv_in(torch.cat([x, plane], dim=1))
        shape, hidden = hidden.shape, hidden.flatten(2)
        for block in self.blocks:
            hidden = block(hidden_states=hidden)
        eps = -noise * self.conv_out(self.norm(hidden).reshape(shape))
        clean = (x - noise * eps) / signal
        if self.solver == "v":
            return signal * eps - noise * clean
        return eps - clean if self.solver.startswith("flow") else eps

    def _own_time(self, time: Tensor) -> float:
        if self.solver == "bare":
            return float(time)
        if not self.solver.startswith("flow"):
            return float(OWN_TIMES[int(time)])
        noise = min(max(float(time) / TRAINED, 1e-4), 1 - 1e-3)
        return math.log1p((noise / (1 - noise)) ** 2)

    def layers(self) -> Iterator[Layer]:
        """As the files hold them."""
        yield from (self.conv_in, self.conv_out)
        for block in self.blocks:
            assert isinstance(block, MixerBlock)
            yield from block.layers()
        yield self.norm


def _own_times() -> np.ndarray:
    """Of the times 0 to 999, even in half log SNR."""
    first, last = (-t / 2 - math.log(-math.expm1(-t)) / 2 for t in (2e-3, LATEST))
    return np.log1p(np.exp(-2 * np.linspace(first, last, TRAINED)))


OWN_TIMES = _own_times()


def betas() -> np.ndarray:
    """Of schedulers that count in these times."""
    signal = np.exp(-OWN_TIMES)
    return 1 - signal / np.concatenate([[1.0], signal[:-1]])


def net(name: str, solver: Solver) -> GalaxyNet:
    """A trained one of NETS. Raises FileNotFoundError where galaxygrad is not installed."""
    spec = find_spec("galaxygrad")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("galaxygrad is not installed: pip install --no-deps galaxygrad==0.1.9")
    return filled(GalaxyNet(solver), Path(spec.origin).parent / f"eqx_{name}_ScoreNet{SIZE}.eqx")


def filled(model: GalaxyNet, path: Path) -> GalaxyNet:
    """With the weights of a file. Raises ValueError where it holds others."""
    arrays = list(_arrays(path))
    wanted = [parameter for layer in model.layers() for parameter in layer.parameters()]
    if [a.size for a in arrays[: len(wanted)]] != [p.numel() for p in wanted]:
        raise ValueError(f"{path} holds other arrays than those of a GalaxyNet. Expected galaxygrad 0.1.9.")
    with torch.no_grad():
        for parameter, array in zip(wanted, arrays, strict=False):
            value = torch.from_numpy(array)
            if parameter is model.conv_out.weight:  # (out, in, h, w), for a correlation with the dilated input
                value = value.transpose(0, 1).flip(2, 3)
            parameter.copy_(value.reshape(parameter.shape))
    return model.eval()


def _arrays(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        end = path.stat().st_size
        while file.tell() < end:
            yield np.load(file, allow_pickle=False)


class Galaxies(NamedTuple):
    """One network under one solver; `target` is what dicache is enabled on."""

    net: GalaxyNet
    solver: Solver
    steps: int

    def target(self) -> Any:  # noqa: ANN401
        return self.net if self.solver == "bare" else SimpleNamespace(transformer=self.net, scheduler=self.scheduler())

    def scheduler(self) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
        if self.solver.startswith("flow"):
            shift = 3.0 if self.solver == "flow 3" else 1.0
            return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAINED, shift=shift)
        prediction = {"eps": "epsilon", "v": "v_prediction"}[self.solver]
        grid = {"num_train_timesteps": TRAINED, "trained_betas": betas(), "timestep_spacing": "trailing"}
        return DDIMScheduler(clip_sample=False, prediction_type=prediction, **grid)

    @torch.no_grad()
    def draw(self, target: Any, noise: Tensor) -> Tensor:  # noqa: ANN401
        """(B, 1, 64, 64) from noise of that shape."""
        if self.solver == "bare":
            return self._by_hand(noise)
        scheduler, x = target.scheduler, noise
        if self.solver.startswith("flow"):
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / self.steps, self.steps))
        else:
            scheduler.set_timesteps(self.steps)
        for time in scheduler.timesteps:
            x = scheduler.step(self.net(x, time.expand(len(x))), time, x, return_dict=False)[0]
        return x

    def _by_hand(self, x: Tensor) -> Tensor:
        """Deterministic, in the network's own time, which falls evenly in half log SNR."""
        times = [*OWN_TIMES[np.linspace(TRAINED - 1, 0, self.steps).round().astype(int)], 0.0]
        for t, after in pairwise(times):
            signal, noise = math.exp(-t / 2), math.sqrt(-math.expm1(-t))
            eps = self.net(x, torch.full((len(x),), float(t)))
            x = math.exp(-after / 2) * (x - noise * eps) / signal + math.sqrt(-math.expm1(-after)) * eps
        return x
