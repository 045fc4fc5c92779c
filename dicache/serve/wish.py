"""What a client may ask for, over HTTP, and how much of it."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from dicache.errors import PipelineError
from dicache.hosts.pipeline_call import guided, taken_by

LIMITS: Mapping[str, int] = {
    "num_inference_steps": 1000,
    "height": 2048,
    "width": 2048,
    "num_frames": 161,
    "num_images_per_prompt": 8,
    "num_videos_per_prompt": 8,
    "max_sequence_length": 1024,
}
"""The greatest values of arguments that memory and time grow with, where the server says nothing else; the least is 1.
"""
LONGEST_PROMPT = 10_000
"""Characters. A tokenizer takes seconds for a million, and others wait."""
FIELDS = {
    **{"prompt": "prompt", "negative_prompt": "negative_prompt", "num_inference_steps": "steps", "height": "height"},
    **{"width": "width", "generator": "seed"},
}
"""Arguments of pipelines that a client says by a field of its own, and that field."""
SERVERS = ("output_type", "return_dict", "callback", "callback_on_step_end", "callback_on_step_end_tensor_inputs")
"""Arguments that are the server's."""


STEPS = ("sigmas", "timesteps")
"""Lists with an entry for each step."""
Text = Annotated[str, Field(max_length=LONGEST_PROMPT)]


class GenerateBody(BaseModel):
    """What is left out is the pipeline's own, or what the server was started with."""

    model_config = ConfigDict(extra="forbid")

    prompt: Text
    negative_prompt: Text | None = None
    steps: int | None = Field(None, ge=1)
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    height: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0, lt=2**63)
    error_budget: float | None = Field(None, ge=0, allow_inf_nan=False)
    speedup: float | None = Field(None, ge=1, allow_inf_nan=False)
    evaluations: int | None = Field(None, ge=1)
    confidence: float | None = Field(None, gt=0, lt=1)
    arguments: dict[str, Any] = {}
    """Further ones of the pipeline's call."""
    id: str | None = Field(None, min_length=1, max_length=200)
    """Of the request, to cancel it by."""

    def options(self) -> dict[str, Any]:
        """As `Engine.submit` takes them."""
        return self.model_dump(include={"error_budget", "speedup", "evaluations", "confidence"}, exclude_none=True)

    def call(
        self,
        pipe: Any,  # noqa: ANN401
        defaults: Mapping[str, Any],
        limits: Mapping[str, int] = LIMITS,
    ) -> dict[str, Any]:
        """As the pipeline takes it; the noise is that of the seed, on the host. Raises PipelineError for arguments that
        are no client's, numbers that are none, and what is above the limits.
        """
        own = {"prompt": self.prompt, "negative_prompt": self.negative_prompt, "height": self.height}
        own |= {"width": self.width, "num_inference_steps": self.steps}
        if self.guidance is not None:
            own |= guided(pipe, self.guidance, self.negative_prompt)
        asked = {name: value for name, value in own.items() if value is not None}
        _check(self.arguments)
        _check_limits({**asked, **self.arguments}, limits)
        generator = {"generator": torch.Generator().manual_seed(self.seed)} if "generator" in taken_by(pipe) else {}
        return {**defaults, **asked, **self.arguments, **generator}


def _check(arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        if name in FIELDS:
            raise PipelineError(f"arguments holds {name}. Say {FIELDS[name]!r} beside it, not in it.")
        if name in SERVERS:
            raise PipelineError(f"arguments holds {name}, which is the server's. It answers with pictures.")
    for value in _leaves(arguments):
        if isinstance(value, float) and not math.isfinite(value):
            raise PipelineError("arguments holds a number that is none (NaN or infinite). Expected finite ones.")
        if isinstance(value, str) and len(value) > LONGEST_PROMPT:
            raise PipelineError(
                f"arguments holds a text of {len(value)} characters. Expected {LONGEST_PROMPT} at most."
            )


def _leaves(value: Any) -> Iterator[Any]:  # noqa: ANN401
    if isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(each)
    else:
        yield value


def _check_limits(asked: Mapping[str, Any], limits: Mapping[str, int]) -> None:
    for name in STEPS:
        if isinstance(asked.get(name), list):
            asked = {**asked, "num_inference_steps": len(asked[name])}
    for name, most in limits.items():
        value = asked.get(name)
        if value is not None and not (isinstance(value, int | float) and 1 <= value <= most):
            shown = f"{value!r:.40}"
            raise PipelineError(f"{FIELDS.get(name, name)} is {shown}. This server takes numbers from 1 to {most}.")
