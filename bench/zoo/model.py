"""What the zoo asks of a model: something dicache can be enabled on, conditions by split, and a loop that draws.

A setting is a model under a solver with a number of steps. Cost is multiply-accumulates of all the model's networks,
counted around every call of them, below every hook. A latent is (B, ...), whatever its shape.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dicache.bench.models.reference import CALIBRATED_ON, Drawn
from dicache.tensors.mac_meter import MacCounter

Split = Literal["calibration", "test"]


class Model(ABC):
    """One model of the bench. `target` is what `fresh` gave."""

    name: str
    solvers: tuple[str, ...]
    """The first is the one under which all arms are drawn."""
    grids: tuple[int, ...]
    """Numbers of steps; the first likewise."""
    batch: int = 32
    calls_per_step: int = 1
    """Calls of the denoiser in a step: 2 where the branches of guidance run one after the other."""

    @abstractmethod
    def fresh(self, solver: str) -> Any:  # noqa: ANN401
        """A pipeline, or a `dicache.Sampler`, that nobody has touched."""

    @abstractmethod
    def scheduler(self, solver: str) -> Any: ...  # noqa: ANN401

    @abstractmethod
    def networks(self, target: Any) -> Sequence[nn.Module]:  # noqa: ANN401
        """All that runs in the loop."""

    @abstractmethod
    def conditions(self, split: Split, count: int, seed: int = 0) -> list[str]: ...

    @abstractmethod
    def draw(self, target: Any, conditions: Sequence[str], steps: int, first: int) -> Tensor:  # noqa: ANN401
        """Final latents; condition i has seed `first` + i."""

    def call(self) -> dict[str, Any] | None:
        """What a pipeline is called with beside prompts, for what is tuned through it; None without a pipeline."""
        return None

    def missing(self) -> str | None:
        """What is not installed or not trained that this model needs, and what to do; None where it can be drawn."""
        return None


@dataclass(frozen=True)
class Setting:
    """As arms see it (`dicache.bench.arms.arm`)."""

    model: Model
    solver: str
    steps: int
    warmup: float = 0.2

    @property
    def calls_per_step(self) -> int:
        return self.model.calls_per_step

    @property
    def name(self) -> str:
        return f"{self.model.name}, {self.solver}, {self.steps} steps".replace("/", " ")

    def calibrate(self, target: Any) -> None:  # noqa: ANN401
        """Draws what the bench never scores, for peers that look at runs of their own."""
        self.model.draw(target, self.model.conditions("calibration", CALIBRATED_ON), self.steps, 0)


def draw(target: Any, conditions: Sequence[str], setting: Setting) -> Drawn:  # noqa: ANN401
    """All conditions, in batches; condition i has seed i."""
    model, parts, macs, seconds = setting.model, [], 0.0, 0.0
    for first in range(0, len(conditions), model.batch):
        with counted_macs(model.networks(target)) as counted:
            started = time.perf_counter()
            parts.append(model.draw(target, conditions[first : first + model.batch], setting.steps, first))
            seconds += time.perf_counter() - started
        macs += counted[0]
    return Drawn(torch.cat(parts), macs, seconds)


@contextmanager
def counted_macs(networks: Sequence[nn.Module]) -> Iterator[list[float]]:
    """MACs of every call of these: wraps `forward` as found, below every hook, while the context lasts."""
    macs, inner = [0.0], [(network, network.forward, "forward" in vars(network)) for network in networks]

    def counting(forward: Any) -> Any:  # noqa: ANN401
        def counted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            with MacCounter() as counter:
                output = forward(*args, **kwargs)
            macs[0] += counter.total
            return output

        return counted

    for network, forward, _ in inner:
        network.forward = counting(forward)
    try:
        yield macs
    finally:
        for network, forward, had in inner:
            if had:
                network.forward = forward
            else:
                del network.forward
