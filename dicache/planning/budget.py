"""Error budgets: how much of the final latent a sample may lose, ||x - x_ref|| / ||x_ref||. One number for all samples
or one per sample.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from dicache.errors import BudgetError
from dicache.types import Rows

Budget = float | tuple[float, ...]


def validate(error_budget: float | Sequence[float]) -> Budget:
    """The budget as plain numbers, of numpy or torch too. Raises BudgetError unless every entry is a finite number
    >= 0.
    """
    if isinstance(error_budget, torch.Tensor | np.ndarray | np.generic):
        error_budget = error_budget.tolist()
    if isinstance(error_budget, str) or not isinstance(error_budget, int | float | Iterable):
        kind = "the text " if isinstance(error_budget, str) else ""
        raise BudgetError(f"error_budget is {kind}{error_budget!r}. Expected a number, or a list of numbers.")
    entries = [error_budget] if isinstance(error_budget, int | float) else list(error_budget)
    if not entries:
        raise BudgetError("error_budget is an empty list. Expected one number, or one per sample.")
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int | float) or not math.isfinite(entry) or entry < 0:
            raise BudgetError(
                f"error_budget contains {entry!r}. "
                "Expected finite numbers >= 0, for example 0.05 for 5 % of the final latent."
            )
    return float(entries[0]) if isinstance(error_budget, int | float) else tuple(map(float, entries))


def per_sample(budget: Budget, samples: int, name: str = "error_budget") -> Rows:
    """(B,) float64; `name` is the argument's. Raises BudgetError if a list does not have one entry per sample."""
    if isinstance(budget, float):
        return torch.full((samples,), budget, dtype=torch.float64)
    if len(budget) != samples:
        raise BudgetError(
            f"{name} has {len(budget)} entries but this run has {samples} samples. "
            "Give one number for all, or one per sample (prompts x images per prompt)."
        )
    return torch.tensor(budget, dtype=torch.float64)


def scaled(budget: Budget, factor: float) -> Budget:
    return budget * factor if isinstance(budget, float) else tuple(entry * factor for entry in budget)


def shared(budget: Budget, sites: int) -> Budget:
    """What each of so many sites may spend: their errors add like independent ones, in squares."""
    return scaled(budget, sites**-0.5)
