"""Two and four ranks, whatever they part and however it is decided: they decide alike, draw the same bits where they
share a sample, and what one process draws; no skipped block is gathered, and a step takes one exchange at most. What
cannot be is refused by name on every rank, and nobody waits for ever.
"""

from functools import partial

import pytest
import torch
from ranks.cells import CELLS, Job, Outcome, alone, draw_jobs, drawn_for
from ranks.processes import run

from helpers.fuzzing import LONG

PER_CELL = 7
"""In the long form, for each number of ranks: 224 runs of it."""
AT_BEGIN = 1
"""Exchanges of a run that begins."""


def jobs_of(size: int) -> list[Job]:
    """In the short form every cell once, half of them with either number of ranks."""
    if LONG == 1:
        return [job for k, job in enumerate(CELLS) if (k // 4 + k) % 2 == (size == 4)]
    return [job._replace(seed=seed) for job in CELLS for seed in range(PER_CELL)]


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_decide_and_draw_as_one_process(size, tmp_path):
    jobs = jobs_of(size)
    ranks = run(partial(_draw, jobs, size), tmp_path, size, patience=120.0 + 15.0 * len(jobs))
    assert all(isinstance(rank, list) for rank in ranks), ranks
    for job, *outcomes in zip(jobs, *ranks, strict=True):
        check(job, size, outcomes)


def _draw(jobs: list[Job], size: int, rank: int) -> list[Outcome | str]:
    return draw_jobs(jobs, rank, size)


def check(job: Job, size: int, outcomes: list[Outcome | str]) -> None:
    if job.layout == "branches" and job.way != "whole":
        assert all(str(each).startswith("RanksError: the guidance branches") for each in outcomes), (job, outcomes)
        return
    assert all(isinstance(each, Outcome) for each in outcomes), (job, outcomes)
    own = [each for each in outcomes if isinstance(each, Outcome)]
    sharing = {"branches": 2, "replicas": 1}.get(job.layout, size)
    for first in range(0, size, sharing):
        together, one = own[first : first + sharing], alone(job, size, first // sharing)
        for each in together:
            assert each.actions == one.actions, job
            assert torch.equal(each.latents, together[0].latents), job
            check_work(job, each, one)
        assert torch.allclose(together[0].latents, one.latents, atol=1e-4, rtol=1e-4), job
        assert job.layout in ("ulysses", "branches") or torch.equal(together[0].latents, one.latents), job


def check_work(job: Job, mine: Outcome, one: Outcome) -> None:
    asked = drawn_for(job)
    branches = 2 if job.layout == "branches" else 1
    assert branches * mine.blocks == one.blocks, job
    if job.layout == "sharded":
        assert mine.gathers <= 1.05 * one.blocks + 1, job  # the root, once
    # Guidance branches in calls of their own exchange each where DiCache decides.
    calls = 2 if job.way == "alignment" and asked.guided else 1
    most = 0 if job.layout == "replicas" else AT_BEGIN + (0 if job.way == "whole" else calls * asked.steps)
    assert mine.exchanges <= most, job
