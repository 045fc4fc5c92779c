"""What gaps cost where it was measured (`dicache.promise.profile`), and the cheapest ways through the rest of a run.

The error of a gap depends on the gap before it: a slope taken over D steps leads less far than one over a single step.
So the state of a way is the computed step i and how far back the one before it lies,

    V(i, D, n) = min_g  (1 + 2 rho) E(i, D, g)^2 + V(i + 1 + g, g + 1, n - 1)

the least squared error of a way that computes n steps from i on. rho is the measured correlation of the final changes
that neighbouring gaps cause: they lean the same way a little, gaps further apart not at all, so that the squares of the
errors add up but for that factor. (The triangle bound, rho = 1 between all, overestimates a run of ten gaps three
times.)
"""

import numpy as np
import torch

from dicache.planning.error_law import remaining
from dicache.promise.profile import Profile


class MeasuredPlan:
    """Of one profile. Speaks like `dicache.planning.law_plan.Plan`; all errors at amplitude 1, which is the median
    prompt.
    """

    def __init__(self, profile: Profile) -> None:
        self.steps, self.reach, measured = profile.arrays["cost"].shape
        self.longest = measured - 1
        both = 1 + 2 * max(0.0, float(profile.arrays["correlation"][0]))
        cost = np.nan_to_num(np.asarray(profile.arrays["cost"], dtype=float), nan=np.inf) * both**0.5
        self.cost = np.concatenate(
            [np.zeros_like(cost[:, :, :1]), np.maximum.accumulate(cost, axis=2)[:, :, :-1]], axis=2
        )
        one_ahead = np.nan_to_num(np.asarray(profile.arrays["turning"], dtype=float)[:, :, :, 0], nan=np.inf).min(0)
        left = float(remaining(torch.tensor([profile.facts.guidance], dtype=torch.float64)))
        self.one_ahead = one_ahead * left * np.append(profile.arrays["quoted"][1:], np.inf)[:, None]
        self.value = self._values()

    def usual(self, anchor: int, before: int) -> float:
        """What the step after `anchor` is quoted at for the median prompt."""
        return float(self.one_ahead[anchor, self._reach(anchor, before)])

    def prices(self, anchor: int, before: int, steps: int) -> np.ndarray:
        """What each of the next steps adds to the error of the gap, (steps,)."""
        return np.diff(self.cost[anchor, self._reach(anchor, before), : steps + 1])

    def gap(self, i: int, before: int, left: float) -> int:
        """How many steps from step i on the cheapest way skips, after i - 1 was computed and `before` before it;
        `left` is the squared error that the way may cost.
        """
        spent = self.cost[i - 1, self._reach(i - 1, before)] ** 2
        most = min(self.longest, self.steps - i)
        ways = [(*self._fewest(i, g, left - spent[g]), g) for g in range(most + 1)]
        return min(ways)[-1]

    def _reach(self, anchor: int, before: int) -> int:
        return min(anchor - before, self.reach) - 1

    def _fewest(self, i: int, g: int, left: float) -> tuple[int, float]:
        """Computed steps of the cheapest way after g steps from i on were skipped, and its squared error."""
        values = self.value[i + g, min(g, self.reach - 1)]
        allowed = np.flatnonzero(values <= left)
        return (int(allowed[0]), float(values[allowed[0]])) if len(allowed) else (self.steps + 1, 0.0)

    def _values(self) -> np.ndarray:
        """V, (T + 1, D, T + 1); inf where there is no such way."""
        value = np.full((self.steps + 1, self.reach, self.steps + 1), np.inf)
        value[self.steps, :, 0] = 0.0
        for i in range(self.steps - 1, 0, -1):
            for g in range(min(self.longest, self.steps - i - 1) + 1):
                after = value[i + 1 + g, min(g, self.reach - 1), :-1]
                value[i, :, 1:] = np.minimum(value[i, :, 1:], self.cost[i, :, g, None] ** 2 + after)
        return value
