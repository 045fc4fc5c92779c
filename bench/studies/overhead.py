"""What dicache's own time leaves of what it saves: `python -m dicache.bench overhead [--narrow | --wide] [--turns N]`

    reference model    CPU seconds of uncached and cached runs in turns: their ratio beside that of the work
    --narrow           24 blocks of width 64, where what a block computes hardly counts: CPU time of a call in which
                       all rows skip, as whole evaluations and as single blocks
    --wide             24 blocks of width 1024: share of a plain call that dicache itself takes where all is computed
                       and where all skip (`dicache.bench.studies.controller_cost`)

CPU seconds of this process on one thread, text encoding apart; medians over turns.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dicache.api import enable
from dicache.bench.models.reference import Setting, fresh
from dicache.bench.studies import controller_cost
from dicache.bench.studies.controller_cost import inputs, model
from dicache.bench.studies.hook_cost import FirstRows
from dicache.config import Config
from dicache.reference import prompts
from dicache.sites import Evaluation, Sites, Spans

BUDGET = 0.1
RUNS = ((1, 28), (8, 28), (1, 8))
"""Rows and steps."""
NARROW: dict[str, Sites] = {"whole evaluations": Evaluation(), "single blocks": Spans()}
TOKENS, SETTLED = 16, 8
"""Calls before one is timed."""
HEADS, TOKENS_WIDE = 16, 256
"""Of 64 channels each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--narrow", action="store_true", help="calls that skip, over 24 narrow blocks")
    sizes.add_argument("--wide", action="store_true", help="calls over 24 blocks of width 1024")
    parser.add_argument("--turns", type=int, default=0, help="by default 5 runs of each kind, 200 narrow calls, 9 wide")


def run(args: argparse.Namespace) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            Console(width=120).print(_table(args))
    finally:
        torch.set_num_threads(threads)


def _table(args: argparse.Namespace) -> Table:
    if args.wide:
        return controller_cost.table(controller_cost.measure(HEADS, TOKENS_WIDE, args.turns or 9))
    return narrow(args.turns or 200) if args.narrow else reference(args.turns or 5)


def _seconds(act: Callable[[], object]) -> float:
    begun = time.process_time()
    act()
    return time.process_time() - begun


def narrow(turns: int) -> Table:
    table = Table("skipped as", "ms of a call, median", "fastest tenth")
    for name, sites in NARROW.items():
        denoiser, arguments = model(1), inputs(TOKENS)
        cache = enable(denoiser, config=Config(FirstRows(0), sites=sites))
        times = []
        for i in range(SETTLED + turns):
            timestep = torch.tensor([1 - i / (SETTLED + turns + 2)])
            times.append(_seconds(partial(denoiser, **arguments, timestep=timestep)))
        cache.disable()
        settled = sorted(times[SETTLED:])
        table.add_row(name, f"{1000 * median(settled):.2f}", f"{1000 * settled[len(settled) // 10]:.2f}")
    return table


def reference(turns: int) -> Table:
    table = Table("rows", "steps", "CPU speed-up", "MAC speed-up", "of it", "own ms a step")
    for rows, steps in RUNS:
        setting = Setting(steps=steps)
        pipe = fresh(setting)
        draw = _drawing(pipe, rows, setting)
        draw()
        plain, cached, report, own = list[float](), list[float](), None, 0.0
        for _ in range(turns):
            plain.append(_seconds(draw))
            with enable(pipe, error_budget=BUDGET) as cache:
                cached.append(_seconds(draw))
            report = cache.report()
            own = report.to_dict()["overhead_seconds"]
        assert report is not None
        saved, work = median(plain) / median(cached), report.compute_speedup
        figures = (f"{saved:.2f}x", f"{work:.2f}x", f"{saved / work:.2f}", f"{1000 * own / steps:.2f}")
        table.add_row(str(rows), str(steps), *figures)
    return table


def _drawing(pipe: Any, rows: int, setting: Setting) -> Callable[[], object]:  # noqa: ANN401
    """One run of so many calibration captions, whose text is encoded once."""
    captions = prompts("calibration", rows)
    embeds, pooled, _ = pipe.encode_prompt(captions, None)
    empty, empty_pooled, _ = pipe.encode_prompt([""] * rows, None)
    encoded = {
        "prompt_embeds": embeds,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": empty,
        "negative_pooled_prompt_embeds": empty_pooled,
    }

    def draw() -> object:
        return pipe(
            **encoded,
            true_cfg_scale=setting.guidance,
            num_inference_steps=setting.steps,
            generator=[torch.Generator().manual_seed(i) for i in range(rows)],
            output_type="latent",
        )

    return draw
