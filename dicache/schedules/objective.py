"""What schedules are searched by where it is not the latent's error: any score of pictures, or of final latents.

    Calibration(prompts, steps, objective=score)
    score(images, prompts) -> (B,)    images (B, C, H, W) in [0, 1] on their device, a prompt a row; higher is better

A search draws several schedules in one batch, so the same prompt may be there several times, and scores may not depend
on what else is in the batch. Rows whose latent is not finite are not shown: they are the worst that there is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dicache.errors import ScheduleError
from dicache.types import Rows

Score = Callable[[Tensor, Sequence[Any]], Tensor]
"""(images or latents, prompts) -> (B,): higher is better."""


@dataclass(frozen=True)
class Objective:
    """A function as an objective, with what a function does not tell of itself."""

    score: Score
    name: str = ""
    """By which files and checkpoints know it; what a function is called where nothing is given."""
    latents: bool = False
    """Whether it is given the final latents, (B, ...), as the pipeline has them, and no picture is decoded."""

    @property
    def called(self) -> str:
        return self.name or _called(self.score)

    def of(self, latents: Tensor, images: Tensor | None, prompts: Sequence[Any]) -> Rows:
        """Scores of a batch, (B,) float64 on the host; -inf where the latent is not finite. Raises ScheduleError unless
        it gives one finite number for each of the others.
        """
        shown = latents if images is None else images
        finite = latents.detach().flatten(1).isfinite().all(1).cpu()
        scores = torch.full((len(latents),), -torch.inf, dtype=torch.float64)
        rows = finite.nonzero().flatten()
        if len(rows):
            some = [prompts[i] for i in rows.tolist()]
            with torch.no_grad():
                answer = torch.as_tensor(self.score(shown[rows.to(shown.device)], some))
            answer = answer.detach().double().cpu()
            if answer.shape != rows.shape or not bool(answer.isfinite().all()):
                raise ScheduleError(
                    f"the objective {self.called} gave {answer.tolist()!r:.80} for {len(rows)} samples. Expected "
                    f"({len(rows)},) finite numbers, one a sample."
                )
            scores[rows] = answer
        return scores


def as_objective(value: Score | Objective | None, *, lasting: bool = False) -> Objective | None:
    """Of what a user gives. Raises ScheduleError for what is no function, and for a lambda without a name where names
    have to last.
    """
    objective = value if value is None or isinstance(value, Objective) else Objective(value)
    if objective is not None and not callable(objective.score):
        raise ScheduleError(f"the objective is {objective.score!r:.80}. Expected a function (images, prompts) -> (B,).")
    if objective is not None and lasting and "<" in objective.called:
        raise ScheduleError(
            f"a checkpoint knows objectives by name, and {objective.called} is none: Objective(..., name=...)."
        )
    return objective


def _called(score: Score) -> str:
    """Of a function where it was written; of anything else its kind."""
    where = score if isinstance(score, type | type(_called)) else type(score)
    return f"{where.__module__}.{where.__qualname__}"
