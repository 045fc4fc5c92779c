"""What happened in a run, step by step and sample by sample. The trace is on the host from the start: it never holds a
tensor of the model.
"""

from typing import NamedTuple

from dicache.types import Grid, Rows, Site


class Record(NamedTuple):
    """One step. Every tensor is (B,), action and reason (B, S), on the host."""

    index: int  # type: ignore[assignment]  # shadows tuple.index
    sigma: float
    branches: tuple[str, ...]
    action: Grid
    reason: Grid
    predicted: Rows
    """Relative error expected of skipping this step; inf where unknown."""
    realised: Rows
    """What it would have been; nan where the step was skipped or there was no guess."""
    spent: Rows
    """The error of the final latent estimated up to this step."""


class Trace(NamedTuple):
    """One run. `complete` is False while it goes on, and stays so if it was interrupted."""

    records: tuple[Record, ...]
    executed: Rows
    uncached: Rows
    """MACs per sample."""
    cache_bytes: int
    overhead_seconds: float
    complete: bool
    sites: tuple[Site, ...] = ()
    site_macs: tuple[float, ...] = ()
    """What computing each site once costs one row."""
    planned_bytes: int | None = None
    """The most that was to be kept, as known after the first step."""
