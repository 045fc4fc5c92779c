"""Error budgets: how much of the final latent a sample may lose, ||x - x_ref|| / ||x_ref||. One number for all samples
or one per sample.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch

from dicache.errors import BudgetError
from dicache.types import Rows

Budget = float | tuple[float, ...]
MOST = 1e100
"""More than anybody means; the square is a number, too."""


def validate(
    error_budget: Any,  # noqa: ANN401
    name: str = "error_budget",
    expected: str = "Expected finite numbers >= 0, for example 0.05 for 5 % of the final latent.",
    least: float = 0.0,
) -> Budget:
    """The budget as plain numbers, of numpy or torch too. Raises BudgetError, which says what of the argument `name` is
    `expected`, unless every entry is a number from `least` to MOST.
    """
    asked = plain(error_budget)
    number = isinstance(asked, int | float)
    if isinstance(asked, str | bytes | bytearray | Mapping | Set) or not (number or isinstance(asked, Iterable)):
        kind = "the text" if isinstance(asked, str) else f"a {type(asked).__name__},"
        raise BudgetError(f"{name} is {kind} {asked!r:.60}. Expected a number, or a list with one per sample.")
    entries = [asked] if isinstance(asked, int | float) else [plain(entry) for entry in _entries(asked, name)]
    if not entries:
        raise BudgetError(f"{name} is an empty list. Expected one number, or one per sample.")
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, int | float) or not least <= entry <= MOST:
            huge = isinstance(entry, int) and entry > MOST  # its digits may be more than Python prints
            shown = f"a number above {MOST:g}" if huge else f"{entry!r:.60}"
            raise BudgetError(f"{name} {'is' if number else 'contains'} {shown}. {expected}")
    return float(entries[0]) if number else tuple(map(float, entries))


def plain(value: Any) -> Any:  # noqa: ANN401
    """What a number, array or tensor holds, as Python has it; anything else as it is."""
    if not isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value
    try:
        return value.tolist()
    except (RuntimeError, NotImplementedError):  # on the device 'meta' there are no numbers
        return value


def _entries(asked: Any, name: str) -> list[Any]:  # noqa: ANN401
    if isinstance(asked, torch.Tensor):
        raise BudgetError(
            f"{name} is a tensor on the device '{asked.device}', with no numbers in it. Expected numbers."
        )
    return list(asked)


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
