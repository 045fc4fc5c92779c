"""Guidance branches as one site: all but the one with the largest weight in the mixture, which always computes.

What is remembered is by how much the others differ from it, and a guess is that difference added to what it gives now
(FasterCache's CFG-Cache, arXiv 2410.19355; `dicache.presets.parts.fastercache` adds its two frequency bands). Where the
strongest branch is called last, the others' outputs are remembered as they are. Before the mixture was measured nobody
knows which branch that is, and everything computes.
"""

import torch
from torch import Tensor

from dicache.config import Config
from dicache.runtime.evaluation_site import EvaluationSite
from dicache.runtime.memory_plan import MemoryPlan
from dicache.runtime.module_call import ModuleCall
from dicache.runtime.run_state import Call, Run
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree
from dicache.types import Rows


class BranchSite:
    def __init__(self, config: Config, meter: Meter, memory: MemoryPlan) -> None:
        self.inner: EvaluationSite = EvaluationSite(config, meter, memory)

    def forget(self) -> None:
        self.inner.forget()

    def block(self, call: Call, module_call: ModuleCall) -> Tree:
        return self.inner.block(call, module_call, self.decide)

    def decide(self, call: Call) -> Rows | None:
        """Which rows compute, (R,) bool; None for all."""
        run, strongest = call.run, _strongest(call)
        if run.samples == 0 or run.apart or bool(strongest.all()):
            return None
        skippable = slice(run.samples * _first_other(run, strongest), None)
        difference = run.strongest is not None or bool(strongest.any())
        computed = self.inner.decide(call, skippable, difference=difference)
        return None if computed is None else computed | strongest

    def end(self, call: Call, output: Tensor) -> Tensor:
        """The denoiser's output, (R, ...), with guesses in the rows that skipped."""
        run, strongest = call.run, _strongest(call)
        if run.guided.mixture is None or bool(strongest.all()):
            run.strongest = None if run.guided.mixture is None else output.detach().clone()
            return run.guided.passed(call.branch, output, call.latent)
        if not bool(strongest.any()):
            return self.inner.end(call, output, base=run.strongest)
        # The strongest branch is a chunk of this very batch: every chunk is held against it.
        chunk = output[strongest.to(output.device)]
        base = chunk.repeat(len(output) // run.samples, *[1] * (output.ndim - 1))
        return self.inner.end(call, output, base, fresh=strongest)


def _strongest(call: Call) -> Rows:
    """Rows of the strongest branch, (R,) bool; none where the mixture is not known."""
    run, rows = call.run, torch.zeros(len(call.latent), dtype=torch.bool)
    if run.guided.strongest is None:
        return rows
    branch, chunk = run.guided.strongest
    if call.branch == branch:
        rows.view(-1, run.samples)[chunk] = True
    return rows


def _first_other(run: Run, strongest: Rows) -> int:
    """The first chunk of the call that may be skipped."""
    return int((~strongest).view(-1, run.samples).all(1).int().argmax())
