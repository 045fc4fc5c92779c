"""Models without a pipeline, called in loops written by hand, and one with a ControlNet in its loop."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    LongCatImageTransformer2DModel,
    OvisImageTransformer2DModel,
)

from pipelines.neighbours import STEPS, quiet
from pipelines.tiny import (
    embeds,
    generators,
    lively,
    make_flux,
)

FLUX_SIZES = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
AXES = {"axes_dims_rope": (4, 6, 6)}


def error(drawn: torch.Tensor, exact: torch.Tensor) -> float:
    return float((drawn - exact).norm() / exact.norm())


def bare_loop(model: torch.nn.Module, call: Callable[[torch.Tensor, torch.Tensor], Any], steps: int) -> torch.Tensor:
    """Euler steps written by hand, with nothing reset before or after."""
    latent = embeds([1, 2], 16, 4)
    with torch.no_grad():
        for i in range(steps):
            latent = latent - call(latent, torch.full((2,), 1 - i / steps))[0] / steps
    return latent


def flux_like(model: Any, **kwargs: Any) -> Callable[[torch.Tensor, torch.Tensor], Any]:
    """A call of a bare model of FLUX's kind."""
    ids = torch.zeros(16, kwargs.pop("axes", 3))
    text = {"encoder_hidden_states": embeds([1, 2], 8, 32, salt=1), "txt_ids": ids[:8], "img_ids": ids}
    return lambda latent, time: model(latent, timestep=time, return_dict=False, **text, **kwargs)


def controlled_flux() -> FluxControlNetPipeline:
    flux = make_flux()
    sizes = {**FLUX_SIZES, "num_layers": 1, "num_single_layers": 1, "pooled_projection_dim": 32}
    control = lively(FluxControlNetModel(1, 4, joint_attention_dim=32, **sizes, **AXES))
    for block in (*control.controlnet_blocks, *control.controlnet_single_blocks):
        torch.nn.init.normal_(block.weight, std=0.1)
    flux.vae.register_to_config(shift_factor=0.06)
    return quiet(FluxControlNetPipeline(**flux.components, controlnet=control))


def draw_controlled(pipe: FluxControlNetPipeline, scale: float = 1.0) -> torch.Tensor:
    return pipe(
        prompt_embeds=embeds([1], 8, 32, salt=1),
        pooled_prompt_embeds=embeds([1], 32, salt=2),
        control_image=embeds([1], 3, 32, 32, salt=5).clamp(-1, 1),
        controlnet_conditioning_scale=scale,
        num_inference_steps=STEPS,
        generator=generators([1]),
        output_type="latent",
        height=32,
        width=32,
    ).images


def make_flux2() -> Any:
    wide = {"attention_head_dim": 16, "timestep_guidance_channels": 32, "axes_dims_rope": (4, 4, 4, 4)}
    return Flux2Transformer2DModel(1, 4, joint_attention_dim=32, guidance_embeds=False, **{**FLUX_SIZES, **wide})


def make_chroma() -> Any:
    small = {"approximator_num_channels": 32, "approximator_hidden_dim": 32, "approximator_layers": 1}
    return ChromaTransformer2DModel(1, 4, joint_attention_dim=32, **FLUX_SIZES, **AXES, **small)


def make_longcat() -> Any:
    return LongCatImageTransformer2DModel(1, 4, joint_attention_dim=32, pooled_projection_dim=32, **FLUX_SIZES, **AXES)


def make_ovis() -> Any:
    return OvisImageTransformer2DModel(1, 4, 4, joint_attention_dim=32, **FLUX_SIZES, **AXES)


def make_bria() -> Any:
    return BriaTransformer2DModel(1, 4, joint_attention_dim=32, **FLUX_SIZES, **AXES)


UNREGISTERED = {"chroma": make_chroma, "bria": make_bria, "ovis": make_ovis, "longcat": make_longcat}
