"""What ranks may do together, cell by cell: how something is decided, whether dicache comes before or after what parts
the work, and what is parted. A job is a cell with all else drawn from its seed.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from ranks.loops import apart_mixed, called, draw, guided, inputs_of
from ranks.processes import error_of, part_tokens
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

import dicache
from dicache import presets
from dicache.controllers.planned import Planned
from dicache.controllers.with_gains import WithGains
from dicache.planning.gains import Gains
from dicache.sites import Spans
from pipelines import tiny

WAYS: dict[str, Callable[[float], dict[str, Any]]] = {
    "whole": lambda size: {"error_budget": size},
    "blocks": lambda size: {"config": dicache.Config(WithGains(Planned(3 * size), Gains()), sites=Spans(1))},
    "first-block probe": lambda size: {"config": presets.first_block_cache(5 * size)},
    "alignment": lambda size: {"config": presets.dicache(4 * size)},
}
LAYOUTS = ("ulysses", "branches", "sharded", "replicas")


class Job(NamedTuple):
    way: str
    order: str
    """Of dicache, "before" or "after" the work is parted."""
    layout: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.way}, {self.layout}, dicache {self.order}, {self.seed}"


CELLS = [Job(way, order, layout) for way in WAYS for order in ("before", "after") for layout in LAYOUTS]


class Drawn(NamedTuple):
    """What is drawn for a job from its seed."""

    steps: int
    samples: tuple[int, ...]
    size: float
    """How much may be skipped."""
    guided: bool


def drawn_for(job: Job, replica: int = 0) -> Drawn:
    """`replica` says whose samples."""
    chance = random.Random(str(job))
    steps, many, size, guided = chance.randint(5, 9), chance.randint(1, 2), chance.uniform(0.03, 0.2), chance.random()
    first = chance.randint(0, 50)
    samples = tuple(range(first + 2 * replica, first + 2 * replica + many))
    return Drawn(steps, samples, size, guided < 0.4 or job.layout == "branches")


class Outcome(NamedTuple):
    latents: Tensor
    actions: list[Any]
    exchanges: int = 0
    gathers: int = 0
    blocks: int = 0
    """How many blocks ran."""


def pipeline(size: int) -> Any:
    pipe = tiny.make_flux(max(2, size))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def blocks_of(pipe: Any) -> list[Any]:
    return [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]


def shard(pipe: Any, size: int) -> None:
    mesh = init_device_mesh("cpu", (size,))
    for module in (*blocks_of(pipe), pipe.transformer):
        fully_shard(module, mesh=mesh)


@contextmanager
def counted(pipe: Any) -> Iterator[dict[str, int]]:
    """How often blocks ran, and weights were gathered."""
    counts, real = {"blocks": 0, "gathers": 0}, _fsdp_param_group.foreach_all_gather

    def gathering(*args: Any, **kwargs: Any) -> Any:
        counts["gathers"] += 1
        return real(*args, **kwargs)

    def running(*_: Any) -> None:
        counts["blocks"] += 1

    handles = [block.attn.register_forward_pre_hook(running) for block in blocks_of(pipe)]
    _fsdp_param_group.foreach_all_gather = gathering
    try:
        yield counts
    finally:
        _fsdp_param_group.foreach_all_gather = real
        for handle in handles:
            handle.remove()


def outcome(job: Job, size: int, part: Callable[[Any], None], ranks: Any = None, replica: int = 0) -> Outcome:
    """Of the pipeline's own loop; `part` parts the work."""
    asked, pipe = drawn_for(job, replica), pipeline(size)
    with torch.no_grad(), counted(pipe) as counts:
        if job.order == "after":
            part(pipe)
        with dicache.enable(pipe, ranks=ranks, **WAYS[job.way](asked.size)) as cache:
            if job.order == "before":
                part(pipe)
            latents = tiny.draw_flux(pipe, asked.samples, asked.steps, guided=asked.guided)
            return found(cache, latents, counts)


def found(cache: dicache.Cache, latents: Tensor, counts: dict[str, int]) -> Outcome:
    group = next(iter(cache._attachments.values())).ranks.group
    actions = [sample["actions"] for sample in cache.report().to_dict()["samples"]]
    return Outcome(latents, actions, 0 if group is None else group.exchanges, counts["gathers"], counts["blocks"])


def alone(job: Job, size: int, replica: int = 0) -> Outcome:
    """What one process draws."""
    if job.layout == "branches":
        return by_hand(
            job,
            size,
            None,
            replica,
            lambda pipe, branches: lambda x, t: guided([called(pipe, each, x, t) for each in branches]),
        )
    return outcome(job, size, lambda pipe: None, replica=replica)


Mix = Callable[[Any, Sequence[dict[str, Any]]], Callable[[Tensor, Tensor], Tensor]]


def by_hand(job: Job, size: int, ranks: Any, replica: int, mix: Mix) -> Outcome:
    """Of a guided loop by hand, whose inputs are prepared before dicache is on, or while it is."""
    asked, pipe, twin = drawn_for(job, replica), pipeline(size), pipeline(size)
    with torch.no_grad():
        prepared = inputs_of(twin, asked.samples, asked.steps) if job.order == "after" else None
        with dicache.enable(pipe, ranks=ranks, **WAYS[job.way](asked.size)) as cache, counted(pipe) as counts:
            branches, noise = prepared or inputs_of(twin, asked.samples, asked.steps)
            return found(cache, draw(pipe, mix(pipe, branches), noise, asked.steps), counts)


def on_rank(job: Job, rank: int, size: int, pairs: Sequence[Any]) -> Outcome | str:
    """What this rank gets; the error's name and text where it is refused. `pairs` are groups of two ranks each."""
    if job.layout == "branches":
        group = pairs[rank // 2]

        def mix(pipe: Any, branches: Sequence[dict[str, Any]]) -> Callable[[Tensor, Tensor], Tensor]:
            return apart_mixed(pipe, branches[rank % 2], group)

        results: list[Outcome] = []
        error = error_of(lambda: results.append(by_hand(job, size, dicache.BranchRanks(group), rank // 2, mix)))
        return results[0] if results else error
    if job.layout == "ulysses":
        return outcome(job, size, lambda pipe: part_tokens(pipe, size))
    if job.layout == "sharded":
        return outcome(job, size, lambda pipe: shard(pipe, size), dist.group.WORLD)
    return outcome(job, size, lambda pipe: None, replica=rank)


def draw_jobs(jobs: Sequence[Job], rank: int, size: int) -> list[Outcome | str]:
    pairs = [dist.new_group([first, first + 1]) for first in range(0, size, 2)]
    return [on_rank(job, rank, size, pairs) for job in jobs]
