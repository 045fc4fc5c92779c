"""A sampling loop of one's own in the shape of a pipeline.

What draws prompts by itself (`dicache.tune`, `dicache.calibrate`, finders, audits) asks a pipeline for three things:
its denoiser, its scheduler, and a call that takes prompts, a number of steps and a generator a sample, gives the final
latents, and tells the latents after each step on the way. A loop that steps a diffusers scheduler has all of them:

    def draw(denoiser, scheduler, prompts, steps, generators):
        latents = torch.stack([torch.randn(4, 32, 32, generator=each) for each in generators])
        scheduler.set_timesteps(steps)
        for time in scheduler.timesteps:
            latents = scheduler.step(denoiser(latents, time.expand(len(latents))), time, latents).prev_sample
        return latents

    sampler = dicache.Sampler(denoiser, scheduler, draw)
    schedule = dicache.tune(sampler, prompts, speedup=2, steps=28)

The loop is given its denoiser and scheduler, since workers draw with copies of them. The latents after a step are read
off `scheduler.step`, which is wrapped while a call lasts.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dicache.errors import UnsupportedModelError
from dicache.measuring.recording import stepping

Draw = Callable[..., Tensor]
"""(denoiser, scheduler, prompts, steps, generators, **call) -> final latents, (B, ...)."""


class Sampler:
    """`draw(denoiser, scheduler, prompts, steps, generators, **call)` is the loop: B prompts (a list of whatever
    conditions the network, or names only where nothing does), the number of steps and B generators, to the final
    latents, (B, ...). `decode` makes pictures of latents, (B, C, H, W) in [0, 1], where a metric asks for them.

    Calling it draws, without gradients: `sampler(prompts, num_inference_steps=28)[0]`.
    """

    transformer: nn.Module
    scheduler: Any
    draw: Draw
    decode: Callable[[Tensor], Tensor] | None

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: Any,  # noqa: ANN401
        draw: Draw,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Raises UnsupportedModelError for a denoiser that is no module, a scheduler without `step`, or a `draw` that
        cannot be called.
        """
        if not isinstance(denoiser, nn.Module) or not callable(getattr(scheduler, "step", None)):
            raise UnsupportedModelError(
                f"a Sampler of a {type(denoiser).__name__} and a {type(scheduler).__name__} was asked for. Expected "
                "the denoiser, a torch module, and the diffusers scheduler that the loop steps."
            )
        if not callable(draw):
            raise UnsupportedModelError(
                f"draw is a {type(draw).__name__}. Expected a function of denoiser, scheduler, prompts, steps and "
                "generators that gives the final latents."
            )
        self.transformer, self.scheduler, self.draw, self.decode = denoiser, scheduler, draw, decode

    @torch.no_grad()
    def __call__(
        self,
        prompt: Sequence[Any],
        num_inference_steps: int = 50,
        generator: Sequence[torch.Generator] | None = None,
        output_type: str = "latent",
        callback_on_step_end: Callable[..., Any] | None = None,
        **call: Any,  # noqa: ANN401
    ) -> tuple[Tensor]:
        """The final latents, or pictures for `output_type="pt"`; `call` is handed on to `draw`. Raises
        UnsupportedModelError for pictures without `decode`, and where the loop gives no tensor with a row a prompt.
        """
        generators = generator or [torch.Generator().manual_seed(seed) for seed in range(len(prompt))]
        if output_type != "latent" and self.decode is None:
            raise UnsupportedModelError("pictures are asked for, and this Sampler has no decode. Give it one.")
        count = itertools.count()

        def after_step(time: Any, latents: Tensor) -> None:  # noqa: ANN401
            if callback_on_step_end is not None:
                callback_on_step_end(self, next(count), time, {"latents": latents})

        with stepping(self.scheduler, after_step):
            latents = self.draw(self.transformer, self.scheduler, list(prompt), num_inference_steps, generators, **call)
        if not isinstance(latents, Tensor) or latents.ndim < 1 or len(latents) != len(prompt):
            what = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise UnsupportedModelError(
                f"draw gave {what} for {len(prompt)} prompts. Expected the final latents, a row each."
            )
        return (latents if output_type == "latent" or self.decode is None else self.decode(latents),)
