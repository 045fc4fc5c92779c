"""All peer arms: cache-dit, the caches of diffusers, SmoothCache, and DeepCache, which cannot run here.

SmoothCache (https://arxiv.org/abs/2411.10510) skips by a schedule found once: a kind of layer is reused at a step if,
on calibration runs, what it gave there differed by less than a threshold (relative L1, mean over layers and guidance
branches) from what it gave at the step last computed. Its package plays such a schedule but has no calibration for a
model of this kind, so that is done here, on calibration captions, with what only feeds a reused output reused too.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from dicache.bench.arms.arm import Arm
from dicache.bench.arms.cache_dit import CACHE_DIT
from dicache.bench.arms.diffusers_caches import DIFFUSERS, calibration_run, warm_up
from dicache.bench.models.reference import Setting

LONGEST = 6
"""Most steps in a row that a schedule skips."""
Changes = dict[tuple[int, int], float]
"""(step, gap) -> how much a kind of layer changed over the last `gap` steps."""


@dataclass(frozen=True)
class Kind:
    """Layers that share a schedule: those called `layer` in the blocks of one stack."""

    stack: str
    layer: str
    feeding: tuple[str, ...] = ()
    """What only feeds it."""

    def layers(self, transformer: nn.Module) -> list[nn.Module]:
        return [block.get_submodule(self.layer) for block in transformer.get_submodule(self.stack).children()]


KINDS = (
    Kind("transformer_blocks", "attn"),
    Kind("transformer_blocks", "ff"),
    Kind("transformer_blocks", "ff_context"),
    Kind("single_transformer_blocks", "proj_out", feeding=("attn", "proj_mlp")),
)


class Recorder:
    """A forward hook on the layers of one kind, for one run."""

    def __init__(self, setting: Setting) -> None:
        self.branches: int = setting.calls_per_step
        self.calls: dict[nn.Module, int] = defaultdict(int)
        self.previous: dict[tuple[nn.Module, int], deque[Tensor]] = defaultdict(lambda: deque(maxlen=LONGEST))
        self.relative_changes: dict[tuple[int, int], list[float]] = defaultdict(list)

    def __call__(self, layer: nn.Module, args: Any, output: Tensor | tuple[Tensor, ...]) -> None:  # noqa: ANN401
        step, branch = divmod(self.calls[layer], self.branches)
        self.calls[layer] += 1
        value = output if isinstance(output, Tensor) else torch.cat(output, dim=1)
        previous = self.previous[layer, branch]
        for gap, before in enumerate(reversed(previous), start=1):
            self.relative_changes[step, gap].append(((value - before).abs().sum() / before.abs().sum()).item())
        previous.append(value)

    def changes(self) -> Changes:
        return {key: sum(values) / len(values) for key, values in self.relative_changes.items()}


def _calibrate(pipe: FluxPipeline, setting: Setting) -> list[Changes]:
    """Per kind."""
    recorders = [Recorder(setting) for _ in KINDS]
    handles = [
        layer.register_forward_hook(recorder)
        for kind, recorder in zip(KINDS, recorders, strict=True)
        for layer in kind.layers(pipe.transformer)
    ]
    try:
        calibration_run(pipe, setting)
    finally:
        for handle in handles:
            handle.remove()
    return [recorder.changes() for recorder in recorders]


def _schedule(changes: Changes, threshold: float, setting: Setting) -> list[int]:
    """1 where a step is computed, as SmoothCache writes it."""
    schedule, last = [], 0
    for step in range(setting.steps):
        reused = step >= warm_up(setting) and changes.get((step, step - last), float("inf")) <= threshold
        schedule.append(int(not reused))
        last = last if reused else step
    return schedule


def _helpers(pipe: FluxPipeline, schedules: list[list[int]]) -> list[Any]:
    """One helper per kind: `attn` is a name in both stacks, and a helper knows layers by their names alone."""
    with redirect_stdout(None):
        from SmoothCache import SmoothCacheHelper
    helpers = []
    for kind, schedule in zip(KINDS, schedules, strict=True):
        names = [kind.layer, *kind.feeding]
        classes = [type(pipe.transformer.get_submodule(f"{kind.stack}.0"))]
        helpers.append(SmoothCacheHelper(pipe.transformer, classes, names, dict.fromkeys(names, schedule)))
    return helpers


@contextmanager
def _branches_apart(pipe: FluxPipeline, helpers: list[Any]) -> Iterator[None]:
    """A SmoothCache helper has one state for all calls: every run gives it a new one per guidance branch.

    It also prints a line per layer and call, which is dropped.
    """
    inner = pipe.transformer.cache_context
    states: dict[str, list[tuple[dict[str, Any], dict[str, int]]]] = {}

    @contextmanager
    def context(name: str) -> Iterator[None]:
        if pipe.scheduler.step_index is None:
            states[name] = [({}, {}) for _ in helpers]
        for helper, state in zip(helpers, states[name], strict=True):
            helper.cache, helper.current_steps = state
        with inner(name), redirect_stdout(None):
            yield

    pipe.transformer.cache_context = context
    try:
        yield
    finally:
        del pipe.transformer.cache_context


@contextmanager
def _smoothcache(pipe: FluxPipeline, threshold: float, setting: Setting) -> Iterator[Setting]:
    schedules = [_schedule(changes, threshold, setting) for changes in _calibrate(pipe, setting)]
    helpers = _helpers(pipe, schedules)
    for helper in helpers:
        helper.enable()
    try:
        with _branches_apart(pipe, helpers):
            yield setting
    finally:
        for helper in helpers:
            helper.disable()


def _deepcache(pipe: FluxPipeline, interval: int, setting: Setting) -> AbstractContextManager[Setting]:
    raise TypeError("DeepCache wraps a UNet; the reference denoiser is a transformer")


STATIC = (
    Arm(
        "SmoothCache",
        "peer",
        "threshold",
        (0.05, 0.1, 0.15, 0.2, 0.3, 0.5),
        _smoothcache,
        "schedule calibrated, at every point anew, on 4 calibration captions; the bench keeps its branches apart",
        packages=("dit-smoothcache",),
        warmup=0.1,
        onward=(0.7, 1.0),
    ),
    Arm("DeepCache", "peer", "cache_interval", (2,), _deepcache, "for UNets", packages=("DeepCache",)),
)
PEERS: tuple[Arm, ...] = (*CACHE_DIT, *DIFFUSERS, *STATIC)
