"""What a pipeline's call takes, and how its guidance is turned on."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from dicache.hosts.running_pipeline import DENOISERS


def guidance_name(pipe: Any) -> str:  # noqa: ANN401
    """What the scale of its guidance by a second branch is called; where a model was trained to be told its scale, and
    needs no second branch, that one.
    """
    denoisers = [getattr(pipe, name, None) for name in DENOISERS]
    embedded = any(_config(denoiser, "guidance_embeds") for denoiser in denoisers)
    return "true_cfg_scale" if "true_cfg_scale" in taken_by(pipe) and not embedded else "guidance_scale"


def taken_by(pipe: Any) -> Mapping[str, inspect.Parameter]:  # noqa: ANN401
    return inspect.signature(pipe.__call__).parameters


def listening(pipe: Any, after_step: Callable[[Tensor], None]) -> dict[str, Any]:  # noqa: ANN401
    """The arguments with which it calls this with the latents after each of its steps, in the way of today's pipelines
    or that of older ones (PixArt); none where it calls nothing.
    """
    taken = taken_by(pipe)

    def at_step_end(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401
        after_step(kwargs["latents"])
        return {}

    def every_step(index: int, timestep: Any, latents: Tensor) -> None:  # noqa: ANN401
        after_step(latents)

    if "callback_on_step_end" not in taken and {"callback", "callback_steps"} <= set(taken):
        return {"callback": every_step, "callback_steps": 1}
    handed_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    return {"callback_on_step_end": at_step_end} if "callback_on_step_end" in taken or handed_on else {}


def guided(pipe: Any, scale: float, negative_prompt: str | None) -> dict[str, Any]:  # noqa: ANN401
    """The arguments that guide it at this scale, 1 for none."""
    name = guidance_name(pipe)
    if name != "true_cfg_scale":
        return {name: scale, "negative_prompt": negative_prompt}
    if scale <= 1:
        return {"negative_prompt": negative_prompt}
    return {name: scale, "negative_prompt": negative_prompt or ""}  # without one, that scale does nothing


def _config(module: Any, name: str) -> Any:  # noqa: ANN401
    return getattr(getattr(module, "config", None), name, None)
