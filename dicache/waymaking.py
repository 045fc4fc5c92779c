"""Fitted ways (`dicache.ways`) of one pipeline: the law says which steps compute, the runs themselves what fills in.

For every number of steps between a fifth and four fifths of them the way is the best of the law's plan. Its slopes are
fitted along cached runs, batch after batch: each batch adds its moments, and is filled in with the slopes of all so far
(`dicache.finders.along`). Its name is what it loses, the median over the prompts. A way that loses no less than a
faster one is left out. Of a batch's uncached run outputs and latents of all steps are kept, while its ways are fitted.
"""

from collections.abc import Sequence

import numpy as np
import torch

from dicache.controllers.planned import Planned
from dicache.finders.along import Drawn, Taken, along, uncached
from dicache.ledger import Entry
from dicache.metrics import relative_error
from dicache.plan import plan_of
from dicache.types import Course

SHARES = (0.2, 0.8)
"""Of the steps that compute."""
MOST = 24
"""Ways at most."""
RIDGE = 1e-4


def candidates(course: Course) -> list[np.ndarray]:
    """Which steps compute, (T,) bool each, from careful to fast."""
    steps, rule = len(course.sigmas), Planned(0.0)
    plan = plan_of(course, rule.longest, rule.last)
    fewest = max(plan.fewest(), 2, round(SHARES[0] * steps))
    counts = np.linspace(max(fewest, round(SHARES[1] * steps)), fewest, MOST).round()
    return [np.isin(np.arange(steps), plan.way(n)) for n in sorted({int(n) for n in counts}, reverse=True)]


def fitted(drawn: Drawn, batch: Sequence[int], taken: list[Taken], way: np.ndarray, known: np.ndarray) -> Entry:
    """The slopes of one way, (T, 2), what it loses, (P,), and the moments of this batch and those before it, (T, 3, 3);
    `known` are those before it. `taken` is filled with the batch's uncached run, once.

    Raises ScheduleError where slopes cannot be fitted along the pipeline's runs.
    """
    if not taken:
        taken += uncached(drawn, batch)
    moments = torch.from_numpy(known.copy())
    run = along(drawn, batch, taken, way.tolist(), RIDGE, moments)
    lost = relative_error(run.latents, _last(taken)).double().numpy()
    slopes = torch.stack([run.slopes.a, run.slopes.b], dim=1).numpy()
    return {"slopes": slopes, "lost": lost, "moments": moments.numpy()}


def _last(taken: Sequence[Taken]) -> torch.Tensor:
    """The uncached run's final latent."""
    return taken[-1].carries * taken[-1].before + taken[-1].adds * taken[-1].output


def arrays_of(ways: Sequence[np.ndarray], found: Sequence[Sequence[Entry]]) -> Entry:
    """Those of a profile; `found` are the entries of every way, batch after batch."""
    errors = [np.concatenate([entry["lost"] for entry in entries]) for entries in found]
    lost = np.array([np.median(each) for each in errors], dtype=np.float32)
    faster = np.fmin.accumulate(np.append(lost, np.inf)[:0:-1])[::-1]
    kept = np.flatnonzero(np.isfinite(lost) & (lost > 0) & (lost < faster)).tolist()
    return {
        "ways": np.stack([ways[k] for k in kept]).astype(np.float32),
        "slopes": np.stack([found[k][-1]["slopes"] for k in kept]).astype(np.float32),
        "lost": lost[kept],
    }
