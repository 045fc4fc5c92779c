"""How hard prompts are: the near key of the prompt memory. What is remembered is a number per prompt, never what
anybody drew. With e what a prompt's embeddings come to (`dicache.models.conditioning`) and k the amplitude that a run
of it had, its final error over what the plan's law has it at amplitude 1,

    log k ~ c + w . e + u
    w = argmin sum (log k - c - w . e)^2 + D s^2 |w|^2,        u = n / (n + 1) (mean log k - c - w . e)

so that prompts which were never seen are judged by those like them (a ridge regression whose prior makes all of D
directions explain as much as the noise s^2), and those that were, n times, by their own runs too. Audits say k, runs
estimate it: they count a quarter, and may lie higher or lower by a constant of their own.

The sums are one entry of the memory, in which old runs fade; every prompt has one more. Both go as others do where the
tenant's bounds are reached, and are changed within one transaction: several processes add to one another.
"""

import hashlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from dicache.errors import DicacheWarning, MemoryFileError
from dicache.files.arrays_file import ArraysFile
from dicache.files.checked import FileFault
from dicache.files.sealed_arrays import sealed, unsealed
from dicache.memory.store import Memory
from dicache.types import Rows, RunFacts

KIND = "dicache.hardness"
MOST_NUMBERS = 128
"""Of the embeddings that are looked at."""
FEWEST = 16
"""Runs, before anything is said."""
WINDOW = 4096
"""Runs in which the sums fade to a third."""
OF_A_RUN = 0.25
"""What an estimate counts where an audit counts 1."""
DAMAGED = (FileFault, ValueError, TypeError, LookupError)


@dataclass
class Hardness:
    """Of the prompts of one tenant, on one model. Each solver, number of steps and guidance is learned by itself."""

    memory: Memory
    model: str
    on: bool = field(default=True, init=False)

    def predict(self, facts: RunFacts) -> Rows | None:
        """log k but for a constant, (B,) float64 on the host; None where too little is known."""
        prints = embeddings(facts)
        if prints is None or not self.on:
            return None
        try:
            sums = _sums_of(self.memory.read(self._key(facts)), prints.shape[1])
            own = [_own_of(self.memory.read(self._key(facts, row))) for row in prints]
        except MemoryFileError as error:
            self._give_up(error)
            return None
        if sums[0, 0] < 0.99 * FEWEST:  # a few fade on the way
            return None
        constants, weights = solved(sums)
        expected = prints @ weights
        for b, (audits, sum_of_audits, runs, sum_of_runs) in enumerate(own):
            n = audits + OF_A_RUN * runs
            if n > 0:
                seen = sum_of_audits - audits * constants[0] + OF_A_RUN * (sum_of_runs - runs * constants.sum())
                expected[b] += n / (n + 1) * (seen / n - expected[b])
        return torch.from_numpy(expected)

    def learn(self, facts: RunFacts, amplitudes: Sequence[float], audited: bool) -> None:
        """Of a run's samples, nan for those of which nothing is known."""
        prints = embeddings(facts)
        if prints is None or not self.on:
            return
        k = np.array(amplitudes, dtype=np.float64)
        rows = np.isfinite(k) & (k > 0)
        if not rows.any():
            return
        prints, logs = prints[rows], np.log(k[rows])
        try:
            for row, log in zip(prints, logs, strict=True):
                more = np.array([1, log, 0, 0] if audited else [0, 0, 1, log], dtype=np.float64)
                self.memory.update(self._key(facts, row), partial(_with_more, more))
            # The sums come last: with tight bounds it is prompts that make room for them.
            self.memory.update(self._key(facts), lambda before: _stored(before, prints, logs, audited))
        except MemoryFileError as error:
            self._give_up(error)

    def _key(self, facts: RunFacts, row: np.ndarray | None = None) -> str:
        """Of the sums, or of one prompt, whose numbers are told apart to a thousandth of the largest."""
        solver = "" if facts.timetable is None else f"{facts.timetable.solver} {len(facts.timetable.sigmas)}"
        setting = f"{self.model}|{solver}|{facts.guidance or 1.0:.1f}|"
        prompt = b"" if row is None else np.round(row / max(np.abs(row).max(), 1e-30), 3).astype("<f4").tobytes()
        return f"{KIND}:{hashlib.sha256(setting.encode() + prompt).hexdigest()}"

    def _give_up(self, error: MemoryFileError) -> None:
        self.on = False
        warnings.warn(f"{error} Prompts are taken to be equally hard.", DicacheWarning, stacklevel=4)


def embeddings(facts: RunFacts) -> np.ndarray | None:
    """What the prompts' embeddings come to, (B, D) float64; None where nothing conditions."""
    named: Mapping[str, torch.Tensor] = facts.own_conditions
    if not named:
        return None
    return torch.cat([named[name] for name in sorted(named)], dim=1)[:, :MOST_NUMBERS].double().cpu().numpy()


def added(sums: np.ndarray, prints: np.ndarray, logs: np.ndarray, audited: bool) -> np.ndarray:
    """`sums`, (D + 3, D + 3), of z z^T with z = (1, is a run's, e, log k), a few more in them."""
    ones = np.ones((len(logs), 1))
    z = np.concatenate([ones, ones * (not audited), prints, logs[:, None]], axis=1)
    fresh: np.ndarray = sums * (1 - 1 / WINDOW) ** len(logs) + (1.0 if audited else OF_A_RUN) * z.T @ z
    return fresh


def solved(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two constants, (2,), of audits and what runs lie above those, and w, (D,)."""
    n, size = sums[0, 0], len(sums) - 3
    # What the constants explain is taken out of everything else first: they have no prior.
    fixed, rest = sums[:2, :2], sums[:2, 2:]
    by_constants = np.linalg.pinv(fixed) @ rest
    left = sums[2:, 2:] - rest.T @ by_constants
    scale = np.sqrt(np.maximum(np.diag(left)[:-1] / n, 1e-24))
    gram, cross = left[:-1, :-1] / np.outer(scale, scale) / n, left[:-1, -1] / scale / n
    weights = np.linalg.solve(gram + size / n * np.eye(size), cross) / scale
    return by_constants[:, -1] - by_constants[:, :-1] @ weights, weights


def _sums_of(entry: bytes | None, size: int) -> np.ndarray:
    """Zero where there are none, or of embeddings of another size."""
    sums = _array_of(entry)
    return sums if sums is not None and sums.shape == (size + 3, size + 3) else np.zeros((size + 3, size + 3))


def _with_more(more: np.ndarray, before: bytes | None) -> bytes:
    return _sealed(_own_of(before) + more)


def _own_of(entry: bytes | None) -> np.ndarray:
    """Audits and their sum of log k, runs and theirs, (4,)."""
    own = _array_of(entry)
    return own if own is not None and own.shape == (4,) else np.zeros(4)


def _array_of(entry: bytes | None) -> np.ndarray | None:
    """None for what is damaged: it is written anew."""
    if entry is None:
        return None
    try:
        file = ArraysFile(io.BufferedReader(io.BytesIO(entry)), len(entry), "the entry")
        unsealed(file, KIND)
        array = file.array("sums")
    except DAMAGED:
        return None
    return array if array.dtype == np.float64 and bool(np.isfinite(array).all()) else None


def _sealed(array: np.ndarray) -> bytes:
    return sealed(KIND, {}, {"sums": array})


def _stored(entry: bytes | None, prints: np.ndarray, logs: np.ndarray, audited: bool) -> bytes:
    return _sealed(added(_sums_of(entry, prints.shape[1]), prints, logs, audited))
