"""Drawing prompts by index, always with the same noise: prompt k has the generator of seed + k, in whatever batch. What
can be known to be wrong with a prompt is said before anything is drawn, and the pipeline's own progress bar is off.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dicache.errors import DicacheError, ProfileError


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

        with torch.no_grad(), _silenced(self.pipe):
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


def check_prompts(pipe: Any, prompts: Sequence[Any]) -> None:  # noqa: ANN401
    """Raises ProfileError, or what the pipeline's tokenizers raise, for the first prompt that cannot be drawn."""
    components = getattr(pipe, "components", {})
    tokenizers = [part for name, part in components.items() if name.startswith("tokenizer") and callable(part)]
    for k, prompt in enumerate(prompts):
        name = f"prompt {k} (counted from 0) of {len(prompts)}"
        if not isinstance(prompt, str) or not prompt.strip():
            raise ProfileError(f"{name} is {prompt!r:.80}. Expected a text that is not empty.")
        for tokenizer in tokenizers:
            try:
                tokenizer(prompt)
            except DicacheError as error:
                raise type(error)(f"{name}, {prompt!r:.80}, cannot be drawn: {error}") from error
            except (TypeError, ValueError, LookupError) as error:
                raise ProfileError(f"{name}, {prompt!r:.80}, cannot be read: {error}.") from error


@contextmanager
def _silenced(pipe: Any) -> Iterator[None]:  # noqa: ANN401
    """With the progress bar of a diffusers pipeline off; it is what it was afterwards."""
    if not callable(getattr(pipe, "set_progress_bar_config", None)):
        yield
        return
    before = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
