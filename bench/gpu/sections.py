"""The parts of the command, in order of worth. Each is a generator of rows, and runs in a process of its own: what one
breaks, a lost device included, the others do not see.

    environment   card, driver, versions, which path of the extension runs
    equality      tests/extension/test_cuda.py, for the native path and for CuPy
    kernels       the fused operations against a copy of as many bytes
    images        a FLUX-shaped denoiser: wall time, executed MACs, waits, memory, against rivals, at two batch sizes
    compiled      the same with the blocks compiled
    offload       the same with its weights kept on the host: model, sequential, groups, groups with a stream
    video         a Wan-shaped denoiser
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dicache.bench.gpu.arms import Arm, blocks, ours, rivals
from dicache.bench.gpu.measure import Bench, Install, Row
from dicache.bench.gpu.pipelines import SMALL, SMALL_VIDEO, TOY, TOY_VIDEO, Flux, Shape, Wan
from dicache.bench.studies import kernels
from dicache.extension import describe

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "cache-dit", "triton", "cupy-cuda12x", "cupy-cuda13x")
SHAPES = ((4, 4096, 3072), (1, 4096, 3072), (1, 32760, 1536), (8, 4096, 1152), (2, 1024, 1536))
TOY_SHAPES = ((1, 256, 1152), (2, 64, 128))
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ask:
    """`until` is on the clock of time.monotonic."""

    device: str
    quick: bool
    until: float

    @property
    def toy(self) -> bool:
        """Whether every line is run once, and no size means anything."""
        return self.device == "cpu" and self.quick

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.toy else torch.bfloat16

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()


Facts = dict[str, Any]
Part = Callable[[Ask], Iterator[Facts]]


def environment(ask: Ask) -> Iterator[Facts]:
    versions = {name: number for name in PACKAGES if (number := _version(name)) is not None}
    facts = {"python": platform.python_version(), "cores": os.cpu_count(), "extension": describe(), **versions}
    if ask.device != "cpu":
        card = torch.cuda.get_device_properties(0)
        facts |= {"card": card.name, "bytes": card.total_memory, "multiprocessors": card.multi_processor_count}
        facts |= {"cuda": torch.version.cuda, "cards": torch.cuda.device_count()}
    yield facts


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def equality(ask: Ask) -> Iterator[Facts]:
    """Needs a checkout and pytest."""
    tests = ROOT / "tests" / "extension" / "test_cuda.py"
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "--no-header", "-p", "no:cacheprovider", str(tests)]
    for path in ("auto",) if ask.device == "cpu" else ("native", "cupy"):
        environ = os.environ | {"DICACHE_EXTENSION": path}
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=max(ask.left, 1))
        lines = done.stdout.strip().splitlines()
        failed = [line[:300] for line in lines if line.startswith(("FAILED", "ERROR"))]
        yield {"path": path, "exit": done.returncode, "said": lines[-1:], "failed": failed}


def fused_kernels(ask: Ask) -> Iterator[Facts]:
    shapes = TOY_SHAPES if ask.toy else SHAPES[:2] if ask.quick else SHAPES
    for shape in shapes:
        if ask.left < 10:
            yield {"shape": shape, "failure": "there was no time left"}
            continue
        with torch.no_grad():
            seconds = 0.02 if ask.toy else 0.4
            lines = kernels.measure((shape,), ask.device, compiled=False, seconds=seconds)
        for line in lines:
            copied = 2 * torch.Size(shape).numel() * kernels.DTYPES[line.dtype].itemsize
            copy = line.milliseconds["copy"]
            yield asdict(line) | {"copy_gigabytes_a_second": copied / copy / 1e6, "of_copy": line.ratio("copy")}


def images(ask: Ask) -> Iterator[Facts]:
    shape, steps = (TOY, 8) if ask.toy else (SMALL, 14) if ask.quick else (Flux(), 28)
    pipe = _pipeline(shape, ask)
    both = [ours("speedup=2", speedup=2.0), ours("speedup=3", speedup=3.0), blocks(2)]
    first = [both[0], ours("error_budget=0", error_budget=0.0), both[1], *rivals(2), both[2], *rivals(3), blocks(3)]
    yield from _rows(ask, pipe, shape, 1, steps, first)
    yield from _rows(ask, pipe, shape, 2 if ask.toy else 4, steps, both)


def compiled(ask: Ask) -> Iterator[Facts]:
    """Block by block, as `compile_repeated_blocks` does; MACs are not counted inside compiled code."""
    shape, steps = (TOY, 6) if ask.toy else (SMALL, 14) if ask.quick else (Flux(), 28)
    pipe = _pipeline(shape, ask)
    options = {"backend": "eager"} if ask.toy else {"mode": "default"}
    arms = [
        ours("speedup=2, compiled", speedup=2.0, compile_blocks=options),
        blocks(2, compile_blocks=options),
    ]

    def install(pipe: Any, device: str, plain: bool) -> None:  # noqa: ANN401
        if plain:
            pipe.transformer.compile_repeated_blocks(fullgraph=True, **options)

    yield from of_arms(ask, Bench(pipe, shape, 1, steps, ask.device, 1, install, counts=False), arms)


def offload(ask: Ask) -> Iterator[Facts]:
    """Its ways on the CPU are those that need no accelerator."""
    shape, steps = (TOY, 4) if ask.toy else (SMALL, 8)
    two = ours("speedup=2", speedup=2.0)
    for name, install in _OFFLOADS.items():
        try:
            for row in _rows(ask, _pipeline(shape, ask), shape, 1, steps, [two], install=install):
                yield {"offload": name, **row}
        except Exception as error:  # some ways need an accelerator, and say so
            yield {"offload": name, "failure": f"{type(error).__name__}: {error}"[:400]}


def _groups(stream: bool) -> Install:
    def install(pipe: Any, device: str, plain: bool) -> None:  # noqa: ANN401
        at, streamed = torch.device(device), stream and device != "cpu"
        pipe.transformer.enable_group_offload(
            onload_device=at,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=streamed,
        )

    return install


_OFFLOADS: dict[str, Install] = {
    "model": lambda pipe, device, _: pipe.enable_model_cpu_offload(device=device),
    "sequential": lambda pipe, device, _: pipe.enable_sequential_cpu_offload(device=device),
    "groups": _groups(False),
    "groups, with a stream": _groups(True),
}


def video(ask: Ask) -> Iterator[Facts]:
    shape, steps = (TOY_VIDEO, 8) if ask.toy else (SMALL_VIDEO, 10) if ask.quick else (Wan(), 12)
    arms = [ours("speedup=2", speedup=2.0), ours("speedup=3", speedup=3.0), blocks(2)]
    yield from _rows(ask, _pipeline(shape, ask), shape, 1, steps, arms)


PARTS: dict[str, tuple[Part, float]] = {
    "environment": (environment, 60),
    "equality": (equality, 120),
    "kernels": (fused_kernels, 90),
    "images": (images, 260),
    "compiled": (compiled, 150),
    "offload": (offload, 90),
    "video": (video, 120),
}
"""Each with the most seconds it gets."""


def _pipeline(shape: Shape, ask: Ask) -> Any:  # noqa: ANN401
    pipe = shape.pipeline(ask.device, ask.dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _rows(
    ask: Ask,
    pipe: Any,  # noqa: ANN401
    shape: Shape,
    batch: int,
    steps: int,
    arms: list[Arm],
    turns: int = 1,
    install: Install | None = None,
) -> Iterator[Facts]:
    """`install` does something to both pipelines, before anything runs."""
    bench = Bench(pipe, shape, batch, steps, ask.device, turns, install)
    yield from of_arms(ask, bench, arms)


def of_arms(ask: Ask, bench: Bench, arms: list[Arm]) -> Iterator[Facts]:
    yield asdict(bench.row())
    for arm in arms:
        if bench.expected() > ask.left:
            yield asdict(Row(arm.name, bench.batch, bench.steps, failure="there was no time left"))
        else:
            yield asdict(bench.measure(arm))


@contextmanager
def quiet() -> Iterator[None]:
    """diffusers' bars and warnings are no part of the output."""
    import diffusers

    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    yield
