"""Stock pipelines of the shapes of large models, with random weights: what a step costs does not depend on what the
weights say.

Weights are made where they are used, in the dtype they are used in; nothing is loaded. Prompts are random embeddings
and the result is the latent, so neither text encoders nor a VAE are there. `twin` is the same denoiser once more on the
same weights, so that a cached and a plain run can take turns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor


@dataclass(frozen=True)
class Flux:
    """FLUX's denoiser, smaller where it says so."""

    double: int = 19
    single: int = 38
    heads: int = 24
    channels: int = 128
    """Per head."""
    text: int = 512
    """Tokens."""
    side: int = 1024
    """Of the picture, in pixels: (side / 16)^2 tokens."""

    def pipeline(self, device: str, dtype: torch.dtype) -> FluxPipeline:
        with _weights(device, dtype):
            denoiser = FluxTransformer2DModel(
                num_layers=self.double,
                num_single_layers=self.single,
                num_attention_heads=self.heads,
                attention_head_dim=self.channels,
                axes_dims_rope=(self.channels // 8, self.channels * 7 // 16, self.channels * 7 // 16),
            )
        return FluxPipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), None, None, None, None, None, denoiser)

    def arguments(self, batch: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "prompt_embeds": _embeddings((batch, self.text, 4096), device, dtype),
            "pooled_prompt_embeds": _embeddings((batch, 768), device, dtype),
            "height": self.side,
            "width": self.side,
        }


@dataclass(frozen=True)
class Wan:
    """The denoiser of Wan 2.1 with 1.3 billion parameters, without guidance."""

    layers: int = 30
    heads: int = 12
    channels: int = 128
    inner: int = 8960
    """Width of the feed-forward parts."""
    text: int = 512
    frames: int = 81
    height: int = 480
    width: int = 832

    def pipeline(self, device: str, dtype: torch.dtype) -> WanPipeline:
        with _weights(device, dtype):
            denoiser = WanTransformer3DModel(
                num_layers=self.layers,
                num_attention_heads=self.heads,
                attention_head_dim=self.channels,
                ffn_dim=self.inner,
            )
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        return WanPipeline(None, None, None, scheduler, transformer=denoiser)

    def arguments(self, batch: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
        size = {"height": self.height, "width": self.width, "num_frames": self.frames}
        return {"prompt_embeds": _embeddings((batch, self.text, 4096), device, dtype), "guidance_scale": 1.0, **size}


Shape = Flux | Wan
TOY = Flux(1, 2, 2, 32, 16, 128)
SMALL = Flux(4, 8)
TOY_VIDEO = Wan(2, 2, 32, 128, 16, 9, 64, 64)
SMALL_VIDEO = Wan(layers=10, frames=33)


def draw(pipe: Any, arguments: dict[str, Any], steps: int) -> Tensor:  # noqa: ANN401
    """The final latents, the same noise every time."""
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        output = pipe(**arguments, num_inference_steps=steps, generator=generator, output_type="latent")
    latents: Tensor = output.images if hasattr(output, "images") else output.frames
    return latents


def twin(pipe: Any) -> Any:  # noqa: ANN401
    """Another pipeline of the same weights, in modules of its own."""
    denoiser = pipe.transformer
    shared = {id(t): t for t in (*denoiser.parameters(), *denoiser.buffers())}
    components = {name: copy(part) for name, part in pipe.components.items() if name != "transformer"}
    if isinstance(pipe, WanPipeline):
        components |= {"boundary_ratio": None, "expand_timesteps": False}
    other = type(pipe)(**components, transformer=deepcopy(denoiser, shared))
    other.set_progress_bar_config(disable=True)
    return other


@contextmanager
def _weights(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside have random weights of this dtype on this device."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _embeddings(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
