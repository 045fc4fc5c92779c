"""Tiny modular pipelines."""

from collections.abc import Callable
from typing import Any

from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.flux import before_denoise as before
from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep
from diffusers.modular_pipelines.flux.inputs import FluxTextInputStep

from pipelines.neighbours import STEPS, quiet
from pipelines.tiny import embeds, generators


def modular_flux(flux: Any, around: Callable[[Any], Any] | None = None) -> Any:
    """`around` makes another block of the one that denoises."""
    denoise = FluxDenoiseStep() if around is None else around(FluxDenoiseStep())

    class Blocks(SequentialPipelineBlocks):
        model_name = "flux"
        block_classes = (
            FluxTextInputStep,
            before.FluxPrepareLatentsStep,
            before.FluxSetTimestepsStep,
            before.FluxRoPEInputsStep,
            denoise,
        )
        block_names = ("text", "latents", "times", "places", "denoise")

    pipe = Blocks().init_pipeline()
    pipe.update_components(transformer=flux.transformer, scheduler=flux.scheduler)
    return quiet(pipe)


def draw_modular(pipe: Any, samples: list[int], steps: int = STEPS, output: Any = "latents", **asked: Any) -> Any:
    return pipe(
        prompt_embeds=embeds(samples, 8, 32, salt=1),
        pooled_prompt_embeds=embeds(samples, 32, salt=2),
        num_inference_steps=steps,
        generator=generators(samples),
        height=32,
        width=32,
        output=output,
        **asked,
    )
