"""What happened in a run, step by step and sample by sample. The trace is on the host from the start: it never holds a
tensor of the model.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

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


class SideWork(NamedTuple):
    """Of one network that the loop calls beside the denoiser: MACs per sample, (B,), or of each where all are alike."""

    name: str
    executed: Rows | float = 0.0
    uncached: Rows | float = 0.0
    """The same if nothing had been skipped."""

    def plus(self, executed: Rows | float, uncached: Rows | float) -> "SideWork":
        return SideWork(self.name, self.executed + executed, self.uncached + uncached)

    def over(self, samples: int) -> "SideWork":
        """What one of so many has of it."""
        return SideWork(self.name, self.executed / samples, self.uncached / samples)

    def of_sample(self, i: int) -> "SideWork":
        executed, uncached = (work[i : i + 1] if isinstance(work, torch.Tensor) else work for work in self[1:])
        return SideWork(self.name, executed, uncached)

    def total(self, samples: int) -> tuple[float, float]:
        """Executed and uncached, of all samples together."""
        executed, uncached = (torch.as_tensor(w, dtype=torch.float64).expand(samples) for w in self[1:])
        return float(executed.sum()), float(uncached.sum())


class Trace(NamedTuple):
    """One run. `complete` is False while it goes on, and stays so if it was interrupted."""

    records: tuple[Record, ...]
    executed: Rows
    uncached: Rows
    """MACs per sample of the denoiser alone, (B,): what rules and schedules reckon with."""
    cache_bytes: int
    overhead_seconds: float
    complete: bool
    sites: tuple[Site, ...] = ()
    site_macs: tuple[float, ...] = ()
    """What computing each site once costs one row."""
    planned_bytes: int | None = None
    """The most that was to be kept, as known after the first step."""
    not_finite: Mapping[int, int] = {}
    """The step from which on a sample is not finite, by sample."""
    refusal: str = ""
    """Why dicache refused to go on with it; empty where it did not."""
    side_work: tuple[SideWork, ...] = ()
    """Of each network that the loop called beside the denoiser."""
    executed_int8: Rows = torch.zeros(1, dtype=torch.float64)
    """Of what was executed, products of 8-bit integers, (B,)."""

    @property
    def loop_executed(self) -> Rows:
        """MACs per sample of all networks of the loop, (B,)."""
        return self.executed + sum(work.executed for work in self.side_work)

    @property
    def loop_uncached(self) -> Rows:
        """The same if nothing had been skipped."""
        return self.uncached + sum(work.uncached for work in self.side_work)


def of_sample(trace: Trace, i: int) -> Trace:
    """The trace of one sample of the batch; bytes and seconds stay those of the batch."""
    row = slice(i, i + 1)
    records = tuple(
        record._replace(
            action=record.action[row],
            reason=record.reason[row],
            predicted=record.predicted[row],
            realised=record.realised[row],
            spent=record.spent[row],
        )
        for record in trace.records
    )
    finite = {0: trace.not_finite[i]} if i in trace.not_finite else {}
    return trace._replace(
        records=records,
        executed=trace.executed[row],
        uncached=trace.uncached[row],
        executed_int8=trace.executed_int8.expand(len(trace.executed))[row],
        not_finite=finite,
        side_work=tuple(work.of_sample(i) for work in trace.side_work),
    )


def joined(traces: Sequence[Trace]) -> Trace:
    """That of a run in which several denoisers took turns, in their order: each begins with a budget and a past of its
    own, and what they spent adds up in squares. Raises ValueError for no trace.
    """
    if not traces:
        raise ValueError("there is no trace to join. Expected one per denoiser.")
    records, before = list[Record](), None
    for trace in traces:
        records += [r if before is None else r._replace(spent=r.spent.hypot(before)) for r in trace.records]
        before = records[-1].spent if records else None
    side = dict[str, SideWork]()
    for work in (work for trace in traces for work in trace.side_work):
        before_it = side.get(work.name, SideWork(work.name))
        side[work.name] = before_it.plus(work.executed, work.uncached)
    planned = [trace.planned_bytes for trace in traces if trace.planned_bytes is not None]
    return traces[-1]._replace(
        records=tuple(records),
        executed=sum((trace.executed for trace in traces[1:]), traces[0].executed),
        uncached=sum((trace.uncached for trace in traces[1:]), traces[0].uncached),
        executed_int8=sum((trace.executed_int8 for trace in traces[1:]), traces[0].executed_int8),
        cache_bytes=sum(trace.cache_bytes for trace in traces),
        overhead_seconds=sum(trace.overhead_seconds for trace in traces),
        complete=all(trace.complete for trace in traces),
        not_finite={sample: step for trace in reversed(traces) for sample, step in trace.not_finite.items()},
        planned_bytes=sum(planned) if planned else None,
        side_work=tuple(side.values()),
    )


def not_finite_of(first: Rows) -> Mapping[int, int]:
    """The first step at which each sample was not finite, by sample; from steps, -1 for none."""
    return {sample: int(step) for sample, step in enumerate(first.tolist()) if step >= 0}
