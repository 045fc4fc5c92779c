"""What a schedule's file knows of its worth, and what a report says of it. What a run estimates on its way knows
nothing of the prompts that the schedule was measured on, nor of fitted coefficients, and may be several times off.
"""

import math
from typing import NamedTuple

CLOSE = 0.02
"""How far guidance scales may differ, relative: they are read off the latents."""


class Provenance(NamedTuple):
    error: float | None = None
    """The mean over the prompts that it was found on; None where it was not measured."""
    prompts: int = 0
    guidance: float | None = None
    """At which its coefficients were fitted; None without any."""
    edited: bool = False
    """Whether its actions were changed in the file."""
    bound: bool = False
    """Whether coefficients hold it to its own steps."""

    def notes(self, moved: str | None, guidance: float | None) -> list[str]:
        """Of a run at this guidance, None where it is not known; `moved` says in what its steps are others."""
        notes = []
        if self.edited:
            notes.append(
                "the schedule's actions were edited in its file: its work was counted anew, its error is unknown."
            )
        if moved is not None:
            notes.append(f"the schedule was moved ({moved}): what it loses here was not measured.")
        elif self.error is not None:
            notes.append(
                f"this schedule erred by {self.error:.3g} in the mean on the {self.prompts} prompts it was found on; "
                "the estimated error is what the run could tell of itself."
            )
        fitted = self.guidance
        if fitted is not None and guidance is not None and not math.isclose(fitted, guidance, rel_tol=CLOSE):
            notes.append(
                f"guidance: the schedule's coefficients were fitted at {fitted:.3g}, this run has {guidance:.3g}. Find "
                "it again at this guidance: errors may be several times larger."
            )
        return notes


UNKNOWN = Provenance()
"""Of a table that was never a schedule: finders try those."""
