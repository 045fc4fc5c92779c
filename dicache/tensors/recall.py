"""Runs of the same samples that differ only in what they skip share what they have in common: a row that computes looks
whether it computed before with the very same latent, and then its output is taken from there.

    (step, branch, row, digest of the latent) -> output

Until two runs decide otherwise for the first time their latents are the same to the bit, and a recalled output keeps
them so. A latent that differs in one bit is simply computed. What else the denoiser is called with must be the same in
every run, row by row: whoever recalls sees to that (`dicache.measuring.calibration_runs`).
"""

import hashlib
from collections.abc import Hashable

import torch
from torch import Tensor

from dicache.tensors.mac_meter import Costs
from dicache.tensors.tree import Tree
from dicache.types import Rows

LARGEST = 2 << 30
"""Bytes that are kept."""


class Recall:
    def __init__(self) -> None:
        self.outputs: dict[Hashable, Tensor] = {}
        """One row each, on the host."""
        self.costs: dict[Hashable, Costs] = {}
        """Of the denoiser's parts, as a `Meter` has them: parts that run for no row are not counted again."""
        self.shapes: dict[tuple[tuple[Hashable, ...], str], Tree] = {}
        """Of what its blocks give."""
        self.spared: Rows = torch.zeros(0, dtype=torch.float64)
        """MACs per row of this run that were recalled in the place of being executed, (R,)."""
        self._bytes, self._keys = 0, list[Hashable | None]()
        self._recalled = torch.zeros(0, dtype=torch.bool)

    def copy(self) -> "Recall":
        """What is known so far; the copy learns for itself."""
        other = Recall()
        other.outputs, other.costs, other.shapes = dict(self.outputs), self.costs, self.shapes
        other._bytes = self._bytes
        return other

    def begin_run(self) -> None:
        self.spared = torch.zeros(0, dtype=torch.float64)

    def spared_of(self, samples: int) -> Rows:
        """The same per sample, (B,)."""
        return self.spared.view(-1, samples).sum(0)

    def recalled(self, call: Hashable, latent: Tensor, computing: Rows | None) -> Rows:
        """Which rows of a call compute and need not run, (R,) bool. `latent` is (R, ...), `computing` (R,) bool or None
        for all.
        """
        wanted = torch.ones(len(latent), dtype=torch.bool) if computing is None else computing
        rows = latent.detach().cpu().contiguous()
        self._keys = [(call, r, _digest(rows[r])) if wanted[r] else None for r in range(len(rows))]
        self._recalled = torch.tensor([key in self.outputs for key in self._keys])
        return self._recalled

    def spare(self, cost: float) -> None:
        """A part of the call did not run for its known rows; `cost` is one row's."""
        if (more := len(self._recalled) - len(self.spared)) > 0:
            self.spared = torch.nn.functional.pad(self.spared, (0, more))
        self.spared[: len(self._recalled)] += cost * self._recalled

    def complete(self, output: Tensor) -> Tensor:
        """The call's output, (R, ...), with what is known in its rows; rows that ran are known from now on."""
        if self._recalled.any():
            output = output.clone()
            for r in self._recalled.nonzero().flatten().tolist():
                output[r] = self.outputs[self._keys[r]].to(output.device)
        for r, key in enumerate(self._keys):
            if key is not None and not self._recalled[r] and self._bytes < LARGEST:
                self.outputs[key] = output[r].detach().to("cpu", copy=True)
                self._bytes += output[r].numel() * output.element_size()
        self._keys, self._recalled = [], torch.zeros(0, dtype=torch.bool)  # the next call may not ask
        return output


def _digest(row: Tensor) -> bytes:
    return hashlib.blake2b(row.reshape(-1).view(torch.uint8).numpy().tobytes(), digest_size=16).digest()
