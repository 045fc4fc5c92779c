"""A session without a pipeline: a few blocks, a clock that is told where it stands, one call at a time."""

from typing import Any

import torch
from torch import Tensor

from dicache.config import Config
from dicache.runtime.module_call import ModuleCall
from dicache.runtime.run_state import Inputs
from dicache.runtime.session import Session
from dicache.solvers.timeline import Reading
from helpers.stepping import Work, a_step


class ToldClock:
    """Of a run of ten steps, from sigma 1 to 0."""

    reason = ""

    def __init__(self) -> None:
        self.run, self.index, self.part, self.facts = object(), 0, 0, {}

    def read(self, timestep: Any) -> Reading:
        return Reading(self.run, a_step(self.index, **self.facts), 0.1, self.part)


class Driven:
    """Blocks b0, b1, ... that add to one stream, (R, 4), under a session; `shift` tells rows of equal latents apart."""

    def __init__(self, config: Config, blocks: int = 3) -> None:
        self.blocks = {f"b{i}": Work(seed=i) for i in range(blocks)}
        self.clock = ToldClock()
        self.session = Session(config, self.clock, config.sites.select(self.blocks, config.probe.depth))

    def call(
        self, index: int, latent: Tensor, shift: Tensor | None = None, branch: str | None = None, **facts: Any
    ) -> Tensor:
        """What the denoiser gives at this step, as the pipeline gets it; `facts` are those of the inputs."""
        self.clock.index = index
        with torch.no_grad():
            self.session.begin(Inputs(latent, None, branch, facts.pop("key", ("key",)), **facts))
            output = self._forward(latent, shift)
            if self.session.call.rejected is not None and not self.session.call.again:
                self.session.repeat()
                output = self._forward(latent, shift)
            return self.session.end(output)

    def exact(self, latent: Tensor, shift: Tensor | None = None) -> Tensor:
        """What it would give without a session; this is not counted."""
        for block in self.blocks.values():
            latent, _ = block(latent, shift), block.ran.pop()
        return latent

    @property
    def ran(self) -> list[list[int]]:
        """Rows of every run of every block."""
        return [block.ran for block in self.blocks.values()]

    def _forward(self, hidden: Tensor, shift: Tensor | None) -> Tensor:
        for path, block in self.blocks.items():
            args = (hidden,) if shift is None else (hidden, shift)
            call = self.session.call
            assert call is not None
            hidden = self.session.strategy.block(call, ModuleCall(path, block, block.forward, args, {}))
        return hidden


def latents(steps: int, rows: int = 2) -> list[Tensor]:
    """(R, 4) each, as different as they can be."""
    return list(torch.randn(steps, rows, 4, generator=torch.Generator().manual_seed(5)))
