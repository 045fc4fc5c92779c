"""What a pipeline's call takes, and how its guidance is turned on."""

import inspect
from collections.abc import Mapping
from typing import Any

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
