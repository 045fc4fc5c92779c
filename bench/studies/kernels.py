"""How fast are the fused operations? `python -m dicache.bench kernels [--quick] [--json FILE] [--device cuda]`

Two tables, every row within one run, all arms taking turns:

    sums        copy, two torch.sum, the relative L1 change in eager torch (2 sums, in float32 and in the dtype) and all
                six of `residual_sums`, the two and the six compiled, and ours (6 sums)
    combine     a line through two noises read off at a latent (3 terms), filled in for half the rows: as the operations
                of eager torch, the same compiled, our guess followed by clone and index_copy_, and ours at once

A copy reads and writes as many bytes as the sums read, so it is the speed of memory. Milliseconds are medians; only the
ratios within a row are worth quoting.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from dicache.extension import combine, describe, reference, residual_sums
from dicache.files.atomic import write_text

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = ((1, 256, 1152), (8, 256, 3072), (2, 1024, 1536), (1, 4096, 3072), (8, 4096, 1152), (4, 4096, 3072))
QUICK = ((1, 256, 1152), (2, 1024, 1536))
OURS = "ours"
AHEAD = 1_000_000
"""Cycles of a device, about half a millisecond."""

Arm = Callable[[], object]


@dataclass(frozen=True)
class Line:
    operation: str
    shape: tuple[int, ...]
    dtype: str
    milliseconds: dict[str, float]
    """Per arm, medians."""

    def ratio(self, arm: str) -> float:
        """How many times as long as ours."""
        return self.milliseconds[arm] / self.milliseconds[OURS]


def relative_l1(a: Tensor, b: Tensor) -> Tensor:
    """As one would write it, in float32 as differences of near numbers want it."""
    return rounded_l1(a.float(), b.float())


def rounded_l1(a: Tensor, b: Tensor) -> Tensor:
    """The same in the tensors' own dtype: quicker, and differences lose their digits."""
    return (a - b).abs().flatten(1).sum(1) / b.abs().flatten(1).sum(1)


def line(newest: Tensor, before: Tensor, latent: Tensor, ratio: Tensor, a: float, b: float) -> Tensor:
    """The noise line and the output it stands for, as one would write them."""
    noise = newest + (newest - before) * ratio
    return (noise - a * latent) / b


def filled(output: Tensor, guess: Tensor, rows: Tensor) -> Tensor:
    result = output.clone()
    result.index_copy_(0, rows, guess[rows])
    return result


def sums_arms(shape: tuple[int, ...], dtype: torch.dtype, device: str, compiled: bool) -> dict[str, Arm]:
    a, b = (torch.randn(shape, device=device).to(dtype) for _ in range(2))
    into = torch.empty_like(a)
    arms: dict[str, Arm] = {
        "copy": lambda: into.copy_(a),
        "2 x torch.sum": lambda: (a.sum(), b.sum()),
        "eager, 2 sums": lambda: relative_l1(a, b),
        "eager, 2 sums, rounded": lambda: rounded_l1(a, b),
        "eager, 6 sums": lambda: reference.residual_sums(a, b),
    }
    if compiled:
        two, six = torch.compile(relative_l1, dynamic=False), torch.compile(reference.residual_sums, dynamic=False)
        arms |= {"compiled, 2 sums": lambda: two(a, b), "compiled, 6 sums": lambda: six(a, b)}
    return arms | {OURS: lambda: residual_sums(a, b)}


def combine_arms(shape: tuple[int, ...], dtype: torch.dtype, device: str, compiled: bool) -> dict[str, Arm]:
    newest, before, latent, output = (torch.randn(shape, device=device).to(dtype) for _ in range(4))
    rows = shape[0]
    skips = torch.arange(rows) >= rows // 2
    ratio, where = torch.full((rows, 1, 1), 0.7, device=device, dtype=dtype), skips.nonzero().flatten().to(device)
    a, b = 1.0, 0.4
    guess = torch.tensor([[1.7 / b, -0.7 / b, -a / b]]).repeat(rows, 1)
    fill = torch.where(skips[:, None], torch.nn.functional.pad(guess, (1, 0)), torch.tensor([1.0, 0, 0, 0]))
    arms: dict[str, Arm] = {
        "copy": lambda: output.clone(),
        "eager": lambda: filled(output, line(newest, before, latent, ratio, a, b), where),
        "guess ours, fill eager": lambda: filled(output, combine([newest, before, latent], guess), where),
    }
    if compiled:
        line_filled = torch.compile(
            lambda: torch.where(skips.to(device)[:, None, None], line(newest, before, latent, ratio, a, b), output),
            dynamic=False,
        )
        arms["compiled"] = line_filled
    return arms | {OURS: lambda: combine([output, newest, before, latent], fill)}


def timed(arms: dict[str, Arm], device: str, seconds: float) -> dict[str, float]:
    """Median milliseconds of every arm; all take turns until the time is up, three times at least."""
    for arm in arms.values():
        _once(arm, device)
    milliseconds: dict[str, list[float]] = {name: [] for name in arms}
    until = time.perf_counter() + seconds
    while len(milliseconds[OURS]) < 3 or (time.perf_counter() < until and len(milliseconds[OURS]) < 200):
        for name, arm in arms.items():
            milliseconds[name].append(_once(arm, device))
    return {name: float(torch.tensor(times).median()) for name, times in milliseconds.items()}


def _once(arm: Arm, device: str) -> float:
    if device == "cpu":
        started = time.perf_counter()
        arm()
        return (time.perf_counter() - started) * 1e3
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda._sleep(AHEAD)  # busy while the host queues what is timed, so that the time is the device's alone
    events[0].record()
    arm()
    events[1].record()
    events[1].synchronize()
    return float(events[0].elapsed_time(events[1]))


def measure(
    shapes: tuple[tuple[int, ...], ...], device: str, *, compiled: bool = True, seconds: float = 3.0
) -> list[Line]:
    """Every operation, shape and dtype."""
    lines = []
    cases = [(o, s, d) for o in ("sums", "combine") for s in shapes for d in DTYPES]
    for operation, shape, dtype in track(cases, "measuring", console=Console(stderr=True)):
        torch.compiler.reset()
        make = sums_arms if operation == "sums" else combine_arms
        arms = make(shape, DTYPES[dtype], device, compiled)
        lines.append(Line(operation, shape, dtype, timed(arms, device, seconds)))
    return lines


def table(lines: list[Line], title: str) -> Table:
    arms = list(lines[0].milliseconds)
    drawn = Table(title=title)
    for column in ("shape", "dtype", *(f"{arm}, ms" for arm in arms)):
        drawn.add_column(column, justify="right")
    for row in lines:
        times = [f"{row.milliseconds[arm]:.3f}" + (f" ({row.ratio(arm):.1f}x)" if arm != OURS else "") for arm in arms]
        drawn.add_row("x".join(map(str, row.shape)), row.dtype, *times, end_section=row.dtype == "fp16")
    return drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="two small shapes, without torch.compile")
    parser.add_argument("--shapes", nargs="+", type=_shape, help="others than the usual, such as 4x4096x3072")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--json", type=Path, help="write the numbers here too")


def _shape(text: str) -> tuple[int, ...]:
    batch, tokens, channels = map(int, text.split("x"))
    return batch, tokens, channels


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    shapes, seconds = (QUICK, 0.2) if args.quick else (SHAPES, 3.0)
    with torch.no_grad():
        lines = measure(args.shapes or shapes, args.device, compiled=not args.quick, seconds=seconds)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"cpu, {args.threads} threads"
    console = Console(width=200)
    for operation in ("sums", "combine"):
        drawn = [line for line in lines if line.operation == operation]
        console.print(table(drawn, f"{operation} on {where}; in brackets: times as long as ours"))
    console.print(describe())
    if args.json:
        facts = {"device": where, "path": describe(), "torch": torch.__version__, "cores": os.cpu_count()}
        write_text(args.json, json.dumps(facts | {"lines": [asdict(line) for line in lines]}, indent=1))
