"""Drawing prompts by index, always with the same noise: prompt k has the generator of seed + k, in whatever batch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dicache.errors import ProfileError


class Drawn(NamedTuple):
    latents: Tensor
    """The final ones, (B, ...)."""
    images: Tensor | None
    """(B, C, H, W) in [0, 1], where a metric asks for them."""


class Drawer:
    """Of one pipeline, at one step count, with the same further arguments."""

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        prompts: Sequence[str],
        steps: int,
        seed: int,
        call: Mapping[str, Any],
        *,
        images: bool,
    ) -> None:
        self.pipe, self.prompts, self.steps, self.seed, self.call, self.images = (
            pipe,
            prompts,
            steps,
            seed,
            call,
            images,
        )

    def draw(self, indices: Sequence[int]) -> Drawn:
        """One run; the same index twice is the same sample twice. Raises ProfileError for a pipeline that does not call
        back after its steps, or does not give a tensor.
        """
        last: dict[str, Tensor] = {}

        def after_step(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
            last.update(latents=kwargs["latents"])
            return {}

        with torch.no_grad():
            output = self.pipe(
                [self.prompts[i] for i in indices],
                num_inference_steps=self.steps,
                generator=[torch.Generator().manual_seed(self.seed + i) for i in indices],
                output_type="pt" if self.images else "latent",
                callback_on_step_end=after_step,
                **self.call,
            )
        if not last:
            raise ProfileError(
                f"{type(self.pipe).__name__} does not call back after its steps: it cannot be calibrated."
            )
        images = output[0] if self.images else None
        if self.images and not (isinstance(images, Tensor) and images.ndim == 4):
            raise ProfileError(f"{type(self.pipe).__name__} gives no picture tensor (B, C, H, W) for output_type='pt'.")
        return Drawn(last["latents"], images)
