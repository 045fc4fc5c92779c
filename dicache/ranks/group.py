"""One small exchange between the ranks that compute a sample together.

Every rank sends 4 kB, and gets what all of them sent:

    which exchange of this process it is | step | what it is for | how many numbers | the numbers, float32

Messages have one size and say what they are, so ranks that have come to different places meet in a named error where
sums of different things would be added. Numbers are added in the order of the ranks and in float64 on each of them, so
all ranks get the same bits, whatever the backend.

A rank that does not come is an error once the process group's own timeout has passed, or as soon as its connection
breaks (gloo); NCCL aborts the process then, as its watchdog is set to.
"""

import hashlib
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from dicache.errors import RanksError

WORDS = 1024
"""Numbers of a message: 4 kB."""
HEAD = 4
EXACT = 2**24
"""Whole numbers below it are exact in float32."""
ADD, COMPARE = 1, 2
PURPOSES = {ADD: "adding up sums", COMPARE: "beginning a run"}


class Group:
    """The ranks of a process group, each of which holds a part of the same samples."""

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        self.process_group = process_group
        self.size: int = dist.get_world_size(process_group)
        self.rank: int = dist.get_rank(process_group)
        self.on_host: bool = dist.get_backend(process_group) == "gloo"
        self.exchanges: int = 0

    def added(self, sums: Tensor, step: int) -> Tensor:
        """(...) to (...), float64: added up over the ranks. Raises RanksError where they are not at the same place."""
        pieces = [self._exchanged(ADD, step, piece) for piece in sums.flatten().float().split(WORDS - HEAD)]
        if not pieces:
            return sums.double()
        return torch.cat([piece.double().sum(0) for piece in pieces]).view(sums.shape).to(sums.device)

    def check_same(self, facts: Mapping[str, object], step: int, device: torch.device) -> None:
        """Raises RanksError that names those of the facts which are not the same on all ranks."""
        digests = [int.from_bytes(hashlib.sha256(repr(fact).encode()).digest()[:3]) for fact in facts.values()]
        rows = self._exchanged(COMPARE, step, torch.tensor(digests, dtype=torch.float32, device=device))
        other = [name for name, alike in zip(facts, (rows == rows[0]).all(0).tolist(), strict=True) if not alike]
        if other:
            raise RanksError(
                f"the {self.size} ranks that compute a sample together began a run with different things: "
                f"{', '.join(other)}. Expected the same call on each of them; give all of them one seed, and enable "
                "dicache with the same arguments."
            )

    def _exchanged(self, purpose: int, step: int, numbers: Tensor) -> Tensor:
        """What every rank sent, (ranks, n)."""
        message = torch.zeros(WORDS, device="cpu" if self.on_host else numbers.device)
        head = (self.exchanges % EXACT, step, purpose, len(numbers))
        message[:HEAD], message[HEAD : HEAD + len(numbers)] = torch.tensor(head, dtype=torch.float32), numbers
        self.exchanges += 1
        received = [torch.empty_like(message) for _ in range(self.size)]
        try:
            dist.all_gather(received, message, group=self.process_group)
        except (RuntimeError, ValueError) as error:
            raise RanksError(
                f"rank {self.rank} of {self.size} waited for the others at step {step} and did not hear of all of them "
                f"({str(error).splitlines()[0]:.200}). Expected every rank to make the same calls: look for the first "
                "error among their outputs."
            ) from error
        rows = torch.stack(received).cpu()
        self._check_heads(rows[:, :HEAD])
        return rows[:, HEAD : HEAD + len(numbers)]

    def _check_heads(self, heads: Tensor) -> None:
        if bool((heads == heads[0]).all()):
            return
        positions = [
            f"rank {rank} at step {int(step)}, {PURPOSES.get(int(purpose), 'elsewhere')} ({int(length)} numbers)"
            for rank, (_, step, purpose, length) in enumerate(heads.tolist())
        ]
        raise RanksError(
            f"the ranks that compute a sample together are at different places: {'; '.join(positions)}. Expected the "
            "same calls on each of them, with the same steps, prompts and sizes."
        )


def is_one_of_several() -> bool:
    """Whether this process is one of a job of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def check_lost(error: RuntimeError) -> None:
    """Raises RanksError in the place of an error of a collective, of the model's own among them."""
    about_ranks = isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
    if about_ranks and not isinstance(error, RanksError):
        raise RanksError(
            f"a rank was lost, or does not make the calls that this one makes ({str(error).splitlines()[0]:.200}). "
            "Look for the first error among the outputs of the ranks."
        ) from error


def digest(tensor: Tensor) -> str:
    """Of its bits; one copy to the host."""
    values = tensor.detach().cpu().contiguous()
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()
