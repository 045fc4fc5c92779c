"""What a tuning draws and takes, before most of it is drawn. Time is reckoned from the first uncached batch: a run
takes as long as what it executes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dicache.finders.multistep import RACED_ON
from dicache.reporting.words import duration

ROUNDS = (8, 16, 24, 48)
"""Numbers of prompts that are shown beside those there are."""


@dataclass(frozen=True)
class TuningPlan:
    """Of so many prompts, drawn `batch` at once; `seconds` is an uncached sample's time."""

    prompts: int
    batch: int
    raced: Sequence[float]
    """The work of every run of the races, whose prompts are the first ones only."""
    finals: Sequence[float]
    """The work of every table that is then fitted on a batch and tried on all prompts."""
    compared: float
    """The work of what the winner is compared with."""
    seconds: float
    exact: bool
    """Whether that is what will be drawn; for a budget it is what may be."""

    def of(self, prompts: int) -> "TuningPlan":
        return replace(self, prompts=prompts)

    @property
    def samples(self) -> int:
        """After the first batch."""
        races = len(self.raced) * self._few + (self._few if self._few < self._fitted else 0)
        tries = len(self._tries) * self._fitted + len(self.finals) * self.prompts
        return 2 * self.prompts + self._fitted + races + tries

    @property
    def runs(self) -> int:
        batches = -(-self.prompts // self.batch)
        again = 2 if self._few < self._fitted else 1
        return 2 * batches + again + len(self.raced) + len(self._tries) + len(self.finals) * batches

    @property
    def uncached(self) -> float:
        """Samples computing everything that would execute as much."""
        races, tries = sum(self.raced) * self._few, sum(self._tries) * self._fitted
        uncached = self.prompts + self._fitted + (self._few if self._few < self._fitted else 0)
        return uncached + races + tries + (sum(self.finals) + self.compared) * self.prompts

    @property
    def lines(self) -> Iterator[str]:
        """What these prompts, and fewer or more of them, take."""
        for n in sorted({*ROUNDS, self.prompts}):
            plan, own = self.of(n), " (yours)" if n == self.prompts else ""
            most, took = "" if self.exact else "up to ", duration(self.seconds * plan.uncached)
            yield f"{n} prompts{own}: {most}{plan.samples} samples to go, in {plan.runs} runs, about {took}"
        yield (
            f"Placements of the computed steps that are raced on {self._few} prompts: {len(self.raced)}. The best are "
            f"fitted on {self._fitted} and tried on all. More prompts buy a better choice and a truer error, and no "
            "confidence: that is what `dicache.calibrate` is for."
        )

    @property
    def _fitted(self) -> int:
        return min(self.batch, self.prompts)

    @property
    def _few(self) -> int:
        return min(RACED_ON, self._fitted)

    @property
    def _tries(self) -> Sequence[float]:
        """What is fitted again on more prompts than it was raced on."""
        return self.finals if self._few < self._fitted else ()
