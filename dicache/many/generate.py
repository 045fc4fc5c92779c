"""Draw many prompts, each within an error budget of its own, in batches that any executor's workers draw.

Prompt k has the noise of seed + k, and a batch is made of the next prompts of one size, so what is in it depends on the
prompts alone: the same call gives the same pictures whatever draws them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dicache.api import enable
from dicache.errors import PipelineError
from dicache.fanout.worker import Worker
from dicache.fanout.workers import Executors, Workers, is_factory
from dicache.measuring.prompt_runs import DrawOrder, Prompt, batch_arguments, listed, misuse, silenced, without_encoder
from dicache.memory.store import Memory
from dicache.planning.budget import per_sample, validate
from dicache.promise.choose_profile import AskedProfile
from dicache.reporting.progress import progress as progress_bar
from dicache.reporting.report import Report

SIZES = ("height", "width", "num_frames", "frames")
"""Arguments of a prompt that a whole batch shares."""


class Generated(NamedTuple):
    """In the order of the prompts."""

    images: list[Any]
    """As the pipeline gives them for `output_type`: pictures, frames, or tensors without the batch."""
    reports: list[Report]


def generate(
    pipe: Any,  # noqa: ANN401
    prompts: Sequence[Prompt],
    budgets: float | Sequence[float],
    *,
    steps: int,
    seed: int = 0,
    batch: int = 8,
    call: Mapping[str, Any] | None = None,
    confidence: float | None = None,
    profile: AskedProfile | None = None,
    memory: str | Path | Memory | None = None,
    output_type: str = "pil",
    executor: Executors | None = None,
    progress: bool = True,
) -> Generated:
    """What the pipeline draws of the prompts in `steps` steps, and a report on each.

    `budgets` is the error that a final latent may have, ||x - x_ref|| / ||x_ref||, one for all or one per prompt; 0
    computes everything. A prompt is a text or a mapping of the pipeline's arguments, which may say its size too,
    {"prompt": "a fox", "height": 512, "width": 768}: only prompts of one size are drawn together. Prompt k has the
    noise of seed + k. `call` are further arguments for all; `confidence`, `profile` and `memory` are those of
    `dicache.enable`.

    `executor` is a `concurrent.futures.Executor` that batches are handed to, each worker with a pipeline of its own, or
    a function that makes one, and then a lost one is replaced. `pipe` may be a function that makes the pipeline.

    Raises BudgetError for budgets that are none or not as many as prompts, PipelineError for a bare denoiser, prompts
    or arguments that cannot be drawn, WorkerError for lost workers, and whatever `enable` and the pipeline raise.
    """
    if isinstance(pipe, nn.Module):
        raise PipelineError(
            f"{type(pipe).__name__} is a bare denoiser, which draws nothing by itself. Pass the pipeline."
        )
    if wrong := misuse(prompts, call or {}) or (not is_factory(pipe) and without_encoder(pipe, prompts)):
        raise PipelineError(wrong)
    if steps < 1 or batch < 1:
        raise PipelineError(f"steps={steps}, batch={batch}: expected 1 or more of each.")
    allowed = per_sample(validate(budgets, "budgets"), len(prompts), "budgets").tolist()
    options = {"confidence": confidence, "profile": profile, "memory": memory}
    orders = _orders(list(prompts), batch, DrawOrder({}, (), steps, seed, dict(call or {}), images=False))
    cells = [GenerateCell(order, tuple(allowed[i] for i in order.indices), options, output_type) for order in orders]
    images: list[Any] = [None] * len(prompts)
    reports: list[Any] = [None] * len(prompts)
    with Workers(pipe, executor, "Nothing of it was saved: call it again.") as workers, progress_bar(progress) as bar:
        task = bar.add_task("drawing", total=len(prompts))
        for cell, (drawn, report) in workers.each(cells):
            for row, i in enumerate(cell.order.indices):
                images[i], reports[i] = drawn[row], report.of_sample(row)
            bar.update(task, advance=len(cell.order.indices))
    return Generated(images, reports)


@dataclass(frozen=True)
class GenerateCell:
    """A batch to be drawn within budgets."""

    order: DrawOrder
    budgets: tuple[float, ...]
    options: Mapping[str, Any]
    """Further ones of `enable`."""
    output_type: str

    def run(self, worker: Worker) -> tuple[list[Any], Report]:
        order, pipe = self.order, worker.pipe
        texts, arguments = batch_arguments(pipe, [order.prompts[i] for i in order.indices])
        with enable(pipe, error_budget=list(self.budgets), **self.options) as cache, torch.no_grad(), silenced(pipe):
            output = pipe(
                *texts,
                num_inference_steps=order.steps,
                generator=[torch.Generator().manual_seed(order.seed + i) for i in order.indices],
                output_type=self.output_type,
                **arguments,
                **listed(order.call, len(order.indices)),
            )
            report = cache.report()
        drawn = list(output[0])
        if len(drawn) != len(order.indices):
            raise PipelineError(
                f"{type(pipe).__name__} drew {len(drawn)} samples of {len(order.indices)} prompts. Expected one each: "
                "leave out num_images_per_prompt, and repeat prompts in its place."
            )
        return drawn, report


def _orders(prompts: Sequence[Prompt], batch: int, common: DrawOrder) -> Iterator[DrawOrder]:
    """Batches of one size each; sizes in the order in which they come."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        size = tuple(None if isinstance(prompt, str) else prompt.get(name) for name in SIZES)
        groups.setdefault(size, []).append(i)
    for size, members in groups.items():
        sized = {name: value for name, value in zip(SIZES, size, strict=True) if value is not None}
        for start in range(0, len(members), batch):
            some = members[start : start + batch]
            plain = {i: _without_size(prompts[i]) for i in some}
            yield replace(common, prompts=plain, indices=tuple(some), call={**common.call, **sized})


def _without_size(prompt: Prompt) -> Prompt:
    return prompt if isinstance(prompt, str) else {name: prompt[name] for name in prompt if name not in SIZES}
