"""What a run remembers of the tokens of its samples."""

from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from dicache.extension import combine
from dicache.runtime.run_state import Run
from dicache.tensors.norms import length
from dicache.token_choice.base import SeenTokens
from dicache.tokens.attention import KeysValues
from dicache.types import Rows


@dataclass
class TokenMemory:
    seeds: list[int]
    """One for each row of the run's first call; the first B are the samples'."""
    pairs: dict[str, dict[str, list[KeysValues | None]]] = field(default_factory=dict)
    """By branch and block: keys and values of all rows and tokens, None for attention to what is no stream."""
    pairs_before: dict[str, dict[str, list[KeysValues | None]]] = field(default_factory=dict)
    """Those of the computed step before, where a line is drawn through both."""
    sigmas: dict[str, Tensor] = field(default_factory=dict)
    """By branch: where both are of, newest first, (2, R) on the host; nan where there is none."""
    shifts: dict[str, Tensor] = field(default_factory=dict)
    """By branch: what guesses were shifted by since the last computed step, (R, N, D)."""
    errors: Tensor | None = None
    """(B, N)."""
    waited: Tensor | None = None
    """(B, N)."""
    computed: list[int] = field(default_factory=list)
    """The step at which each sample was last computed, B."""
    entering: Tensor | None = None
    """What went into the first block at the last step that anybody had a choice at, (B, N, C)."""
    leaving: Tensor | None = None
    """(B, N, C)."""
    state: Any = None
    """That of the choice."""
    step: int = -1
    """The step that `mask` is of."""
    mask: Tensor | None = None
    """The tokens that run, (B, N) bool."""
    computing: Rows | None = None
    """The samples that compute at this step, (B,) bool; None for all."""
    missed: Tensor | None = None
    """By how much the guesses of the tokens that ran were off at this step, all branches mixed, (B, N, D)."""

    @property
    def pair_bytes(self) -> int:
        """Of all keys and values."""
        pairs = [pair for branch in self.pairs.values() for block in branch.values() for pair in block]
        return sum(t.nbytes for pair in pairs for t in pair or ())

    def begin_step(self, run: Run) -> None:
        """The next step's first call; others change nothing."""
        if self.step == run.step.index:
            return
        if run.samples:
            self._end_step(run.samples)
        self.step, self.mask, self.missed, self.computing = run.step.index, None, None, None

    def _end_step(self, samples: int) -> None:
        """All tokens ran of samples that computed, and those of the mask of the others."""
        computing = [True] * samples if self.computing is None else self.computing.tolist()
        before = self.computed or [self.step] * samples
        self.computed = [self.step if of else step for of, step in zip(computing, before, strict=True)]
        if self.waited is not None:
            ran = torch.tensor(computing, device=self.waited.device)[:, None]
            ran = ran if self.mask is None else ran | self.mask
            self.waited = torch.where(ran, 0.0, self.waited)

    def store(self, branch: str, path: str, fresh: list[KeysValues | None], some: Tensor | None, line: bool) -> None:
        """Keys and values of one block, of all rows, or of `some`, (r,), which are (r, H, L, D) then."""
        stored, before = (pairs.setdefault(branch, {}) for pairs in (self.pairs, self.pairs_before))
        if some is None:
            if line and path in stored:
                before[path] = stored[path]
            stored[path] = fresh
            return
        if line and path not in before:
            before[path] = [None if pair is None else KeysValues(*(t.clone() for t in pair)) for pair in stored[path]]
        older = before.get(path, [None] * len(fresh))
        with torch.inference_mode():  # where what was computed in there may be written to, and all else too
            for old, new, oldest in zip(stored[path], fresh, older, strict=True):
                if old is None or new is None:
                    continue
                for i in range(2):
                    if oldest is not None:
                        oldest[i].index_copy_(0, some, old[i].index_select(0, some))
                    old[i].index_copy_(0, some, new[i])

    def stored_at(self, branch: str, path: str, sigma: float) -> list[KeysValues | None] | None:
        """Keys and values of one block, on the line through the last two where those are remembered; None where it
        never ran.
        """
        stored, before = self.pairs.get(branch, {}).get(path), self.pairs_before.get(branch, {}).get(path)
        if stored is None or before is None:
            return stored
        newest, older = self.sigmas[branch]
        ratio = ((sigma - newest) / (newest - older)).nan_to_num(0.0, 0.0, 0.0)
        line = torch.stack([1 + ratio, -ratio], dim=1)
        return [
            None
            if new is None or old is None
            else KeysValues(*(combine(ends, line) for ends in zip(new, old, strict=True)))
            for new, old in zip(stored, before, strict=True)
        ]

    def stored_all(self, branch: str, sigma: float, computed: Rows | None, rows: int) -> None:
        """All blocks of a call have run at `sigma`, whole for the rows that `computed`, (R,) bool; None for all."""
        old = self.sigmas.get(branch, torch.full((2, rows), torch.nan, dtype=torch.float64))
        new = torch.stack([torch.full_like(old[0], sigma), old[0]])
        self.sigmas[branch] = new if computed is None else torch.where(computed, new, old)

    def seen(self, run: Run, n_tokens: int, entering: Tensor | None) -> SeenTokens:
        """At the beginning of a step, on which every token has waited longer by one."""
        device = run.latent.device
        if self.errors is None or self.waited is None:
            self.errors, self.waited = (torch.zeros(run.samples, n_tokens, device=device) for _ in range(2))
        self.waited += 1
        return SeenTokens(
            run.step.index, self.seeds[: run.samples], self.errors, self.waited, self.computed, entering, self.entering,
            self.leaving,
        )  # fmt: skip

    def miss(self, missed: Tensor, mask: Tensor) -> None:
        """What one branch's guesses were off by, weighed, (R, N, D), of the tokens that ran, (R, N) bool."""
        assert self.errors is not None
        samples = len(self.errors)
        own = missed.unflatten(0, (-1, samples)).sum(0)
        self.missed = own if self.missed is None else self.missed + own
        self.learn(self.missed, mask[:samples])

    def learn(self, missed: Tensor, mask: Tensor) -> None:
        """What guesses were off by, (B, N, D), where `mask`, (B, N) or (B, 1) bool, holds."""
        assert self.errors is not None
        errors = length(missed.flatten(0, 1).float()).view(missed.shape[:2])
        self.errors = torch.where(mask, errors, self.errors)


def seeds_of(latent: Tensor) -> list[int]:
    """A number of every row, by its bits."""
    rows = latent.detach().flatten(1)[:, :256].contiguous().cpu().view(torch.uint8)
    return [crc32(row.numpy().tobytes()) for row in rows]


def padded(mask: Tensor) -> Tensor:
    """The tokens of a mask, (R, N) bool, as (R, k) indices. k is the most of any row; one with fewer has its first
    token again, which then runs twice and gives the same.
    """
    counts = mask.sum(1)
    most = int(counts.max())
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    within = torch.arange(most, device=mask.device) < counts[:, None]
    return torch.where(within, order, order[:, :1])


def weights_of(run: Run, branch: str, rows: int) -> Tensor:
    """Of every row's output in the mixture of the guidance branches, (R,); 1 where that is not known."""
    guided = run.guided
    if guided.mixture is None or branch not in guided.order:
        return torch.ones(rows)
    return guided.mixture.split(guided.widths)[guided.order.index(branch)].flatten()
