"""A tiny pipeline that takes prompts, and profiles for tests: measured ones, and made-up ones that cost nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dicache.measuring.calibrate import calibrate
from dicache.promise.facts import Facts
from dicache.promise.profile import Profile
from pipelines.tiny import GUIDANCE, embeds, make_flux

STEPS, LEVELS = 10, (0.05, 0.2, 0.8)
PROMPTS = [f"prompt {k}" for k in range(12)]
GUIDED = {"guidance": GUIDANCE}


class Captioned:
    """A tiny Flux pipeline whose prompts are names of samples: "prompt 3" is sample 3. Every sample has a negative
    prompt of its own, or that of the sample that `negative` names for it.
    """

    def __init__(self, negative: Callable[[int], int] = int) -> None:
        self.pipe, self.runs, self.fail_after, self.negative = make_flux(), 0, None, negative
        self.pipe.set_progress_bar_config(disable=True)

    @property
    def transformer(self) -> torch.nn.Module:
        return self.pipe.transformer

    @property
    def scheduler(self) -> Any:
        return self.pipe.scheduler

    def __call__(self, prompts: Sequence[str], *, guidance: float = 1.0, **kwargs: Any) -> tuple[torch.Tensor]:
        if self.runs == self.fail_after:
            raise KeyboardInterrupt
        self.runs += 1
        samples = [int(prompt.split()[1]) for prompt in prompts]
        negative = {
            "negative_prompt_embeds": embeds(list(map(self.negative, samples)), 8, 32, salt=3),
            "negative_pooled_prompt_embeds": embeds(list(map(self.negative, samples)), 32, salt=4),
            "true_cfg_scale": guidance,
        }
        return self.pipe(
            prompt_embeds=embeds(samples, 8, 32, salt=1),
            pooled_prompt_embeds=embeds(samples, 32, salt=2),
            return_dict=False,
            **(negative if guidance > 1 else {}),
            **{"height": 32, "width": 32, **kwargs},
        )

    def draw(
        self, samples: Sequence[int], steps: int = STEPS, guidance: float = GUIDANCE, **kwargs: Any
    ) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(sample) for sample in samples]
        prompts = [f"prompt {sample}" for sample in samples]
        with torch.no_grad():
            return self(
                prompts,
                guidance=guidance,
                num_inference_steps=steps,
                generator=generators,
                output_type="latent",
                **kwargs,
            )[0]


def calibrated(pipe: Captioned, levels: Sequence[float] = LEVELS, **kwargs: Any) -> Profile:
    return calibrate(pipe, PROMPTS, steps=STEPS, batch=4, levels=levels, call=GUIDED, progress=False, **kwargs)


def made_up(model: str = "Model-0", steps: int = STEPS, prompts: int = 60, **facts: Any) -> Profile:
    """Losses that grow with the level and differ between prompts."""
    rng, levels = np.random.default_rng(0), np.array(LEVELS)
    losses = levels * rng.lognormal(-0.5, 0.4, (prompts, 1)) * rng.lognormal(0, 0.1, (prompts, len(levels)))
    arrays = {
        "levels": levels,
        "estimate": np.broadcast_to(levels, losses.shape).copy(),
        "work": np.broadcast_to([0.8, 0.6, 0.4], losses.shape).copy(),
        "loss.latent": losses,
    }
    known = {"scheduler": "Solver()", "sigmas": tuple(1 - k / steps for k in range(steps)), "guidance": 1.0} | facts
    return Profile(Facts(model, **known), {key: value.astype(np.float32) for key, value in arrays.items()})
