"""Ranks as processes on gloo, and what they are to do: one report a rank, as plain data and tensors."""

import contextlib
import datetime
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

import dicache
from dicache import presets
from dicache.controllers.planned import Planned
from dicache.controllers.with_gains import WithGains
from dicache.planning.gains import Gains
from dicache.sites import Spans
from pipelines import tiny

STEPS, SAMPLES = 10, (0, 1)
WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "whole": lambda: {"error_budget": 0.1},
    "blocks": lambda: {"config": dicache.Config(WithGains(Planned(0.3), Gains()), sites=Spans(1))},
    "first-block probe": lambda: {"config": presets.first_block_cache(0.5)},
    "alignment": lambda: {"config": presets.dicache(0.4)},
}
Work = Callable[[int], Any]


def run(work: Work, folder: Path, size: int = 2, patience: float = 240) -> list[Any]:
    """What `work(rank)` gives on each of the ranks; an exception in the place of what failed, None of what was lost.
    Forked, because tests need no device and have loaded everything.
    """
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, size, work, folder)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(patience)
        process.kill()
    paths = [folder / f"{rank}.pt" for rank in range(size)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]


def _rank(rank: int, size: int, work: Work, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: size  # diffusers divides by it, and it is 0 on a CPU
    store = f"file://{folder}/store"
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store, rank=rank, world_size=size, timeout=timeout)
    try:
        report = work(rank)
    except Exception as error:
        report = RuntimeError(f"{error}\n{traceback.format_exc()}")
    torch.save(report, folder / "writing.pt" if rank < 0 else folder / f"{rank}.pt")
    with contextlib.suppress(RuntimeError):
        dist.barrier()
    os._exit(0)


def part_tokens(pipe: Any, degree: int = 2) -> None:
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degree))


def drawn(make: Callable[[], Any], draw: Callable[..., Any], way: str, order: str = "alone", **kwargs: Any) -> Any:
    """Latents, actions and exchanges of a run; tokens parted before dicache, after it, or not at all."""
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    if order == "dicache after":
        part_tokens(pipe)
    with torch.no_grad(), dicache.enable(pipe, **WAYS[way]()) as cache:
        if order == "dicache before":
            part_tokens(pipe)
        latents = draw(pipe, SAMPLES, STEPS, **kwargs)
        group = next(iter(cache._attachments.values())).ranks.group
        actions = [sample["actions"] for sample in cache.report().to_dict()["samples"]]
    return {"latents": latents, "actions": actions, "exchanges": 0 if group is None else group.exchanges}


CELLS = [(way, order) for way in WAYS for order in ("dicache before", "dicache after")]
VIDEO = {"height": 64, "width": 64}
"""More tokens than the text has, on each of two ranks."""


def draw_cells(rank: int) -> dict[str, Any]:
    cells = {cell: drawn(tiny.make_flux, tiny.draw_flux, *cell) for cell in CELLS}
    cells["wan"] = drawn(tiny.make_wan, tiny.draw_wan, "first-block probe", "dicache after", **VIDEO)
    return cells


def error_of(act: Callable[[], Any]) -> str:
    """The name and the text of what it raises."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"
