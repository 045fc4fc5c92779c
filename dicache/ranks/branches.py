"""Guidance branches on different ranks: each calls the denoiser for one branch of the same samples, and they mix what
it gave by themselves (as xDiT, vLLM-Omni and SGLang do).

What a guidance step is wrong by is that of the mixture, so a rank that sees one branch knows too little: it would take
guidance for 1. So whenever something was computed, ranks hand each other their branch's output and what their guesses
of it were; each then knows what one process knows that calls all branches, in the same order and to the bit, and they
decide alike. That is (1 + approximators) latents a computed step and rank, as much again as the ranks mix; in a skipped
step nothing, but in loops whose mixture is watched (a latent) and in a run's first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from dicache.errors import ModeError, RanksError
from dicache.ranks.group import Group


@dataclass(frozen=True)
class BranchRanks:
    """Says in `dicache.enable(..., ranks=BranchRanks(group))` that rank b of a torch.distributed process group calls
    the denoiser for guidance branch b. Raises ModeError for anything but a process group.
    """

    process_group: Any

    def __post_init__(self) -> None:
        if not isinstance(self.process_group, dist.ProcessGroup):
            raise ModeError(
                f"BranchRanks has {self.process_group!r:.80}. Expected a torch.distributed process group, for example "
                "dist.group.WORLD."
            )


class BranchOutputs(NamedTuple):
    """What one branch gave in a step."""

    branch: str
    result: Tensor
    """What the pipeline gets, (R, ...)."""
    output: Tensor
    """What was computed."""
    guesses: Mapping[int, Tensor]
    """By approximator."""


class BranchesApart:
    def __init__(self, group: Group) -> None:
        self.group = group

    def name(self, rank: int) -> str:
        return f"rank {rank}"

    def all_of(self, own: BranchOutputs, *, computed: bool, contents: bool) -> list[BranchOutputs]:
        """Of all ranks, in their order. Whether something was `computed`, and whether the `contents` of results are
        read. Raises RanksError where they are of other sizes, or one does not come.
        """
        sent = [own.result] if contents else []
        sent += [own.output, *own.guesses.values()] if computed else []
        received = self._gathered(torch.stack([t.to(own.result.dtype) for t in sent])) if sent else None
        return [self._handed(rank, own, received, computed, contents) for rank in range(self.group.size)]

    def _handed(
        self, rank: int, own: BranchOutputs, received: list[Tensor] | None, computed: bool, contents: bool
    ) -> BranchOutputs:
        """`own` in the place of what nobody reads."""
        parts = iter(own.result[None] if received is None else received[rank])
        result = next(parts) if contents else own.result
        output = next(parts) if computed else own.output
        guesses = {i: next(parts) for i in own.guesses} if computed else own.guesses
        part = own.branch.removeprefix(self.name(self.group.rank))  # which of the solver's calls in a step it is
        return BranchOutputs(self.name(rank) + part, result, output, guesses)

    def all_prints(self, prints: Mapping[str, Any], controls: frozenset[str]) -> list[tuple[dict[str, Any], Any]]:
        """What each rank's branch is conditioned by, and steered by; once a run."""
        received: list[Any] = [None] * self.group.size
        with_errors_named(lambda: dist.all_gather_object(received, (dict(prints), controls), self.group.process_group))
        return received

    def _gathered(self, tensor: Tensor) -> list[Tensor]:
        own = tensor.contiguous().cpu() if self.group.on_host else tensor.contiguous()
        received = [torch.empty_like(own) for _ in range(self.group.size)]
        with_errors_named(lambda: dist.all_gather(received, own, group=self.group.process_group))
        return [each.to(tensor.device) for each in received]


def with_errors_named(exchange: Any) -> None:  # noqa: ANN401
    """Raises RanksError in the place of what a collective raises."""
    try:
        exchange()
    except (RuntimeError, ValueError) as error:
        raise RanksError(
            f"the ranks that compute a sample's guidance branches did not hear of each other "
            f"({str(error).splitlines()[0]:.200}). Expected one call of the denoiser on each of them in every step: "
            "look for the first error among their outputs."
        ) from error
