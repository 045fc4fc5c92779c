"""Tiny pipelines with random weights, one of every shape that a session must cope with. No network, a fraction of a
second each.

`draw` runs one for given samples: every sample is a number that fixes its prompt and its noise, whatever batch it is
in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor

GUIDANCE = 4.0
STEPS = 10


@dataclass(frozen=True)
class Tiny:
    """One kind of pipeline: how to make it, and how to run it on samples for a number of steps."""

    make: Callable[[], DiffusionPipeline]
    draw: Callable[..., Tensor]


def embeds(samples: Sequence[int], *shape: int, salt: int = 0) -> Tensor:
    """(B, *shape), each row fixed by its sample."""
    return torch.stack(
        [torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * salt + sample)) for sample in samples]
    )


def generators(samples: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(sample) for sample in samples]


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Weights large enough that outputs differ between samples and steps, the same every time."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(
            parameter,
            1.0 if parameter.ndim == 1 else 0.0,
            std=0.6 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.02,
        )
    return model.eval()


def make_flux(heads: int = 2) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    vae = AutoencoderKL(block_out_channels=(4,), latent_channels=1, norm_num_groups=1)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, transformer=lively(transformer), **nothing
    )


def draw_flux(pipe: FluxPipeline, samples: Sequence[int], steps: int, *, guided: bool = False, **kwargs: Any) -> Tensor:
    negative = {
        "negative_prompt_embeds": embeds(samples, 8, 32, salt=3),
        "negative_pooled_prompt_embeds": embeds(samples, 32, salt=4),
        "true_cfg_scale": GUIDANCE,
    }
    return pipe(
        prompt_embeds=embeds(samples, 8, 32, salt=1),
        pooled_prompt_embeds=embeds(samples, 32, salt=2),
        num_inference_steps=steps,
        generator=generators(samples),
        output_type="latent",
        **{"height": 32, "width": 32, **(negative if guided else {}), **kwargs},
    ).images


def make_sd3() -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    nothing = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    vae = AutoencoderKL(
        block_out_channels=(4,), latent_channels=4, norm_num_groups=1, shift_factor=0.06, scaling_factor=1.5
    )
    return StableDiffusion3Pipeline(
        transformer=lively(transformer), scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, **nothing
    )


def draw_sd3(
    pipe: StableDiffusion3Pipeline, samples: Sequence[int], steps: int, *, guided: bool = True, **kwargs: Any
) -> Tensor:
    return pipe(
        prompt_embeds=embeds(samples, 8, 32, salt=1),
        negative_prompt_embeds=embeds(samples, 8, 32, salt=3),
        pooled_prompt_embeds=embeds(samples, 64, salt=2),
        negative_pooled_prompt_embeds=embeds(samples, 64, salt=4),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE if guided else 1.0,
        generator=generators(samples),
        output_type="latent",
        **{"height": 16, "width": 16, **kwargs},
    ).images


def make_pixart() -> PixArtAlphaPipeline:
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    )
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1)
    return PixArtAlphaPipeline(
        transformer=lively(transformer),
        vae=vae,
        scheduler=DDIMScheduler(clip_sample=False),
        text_encoder=None,
        tokenizer=None,
    )


def draw_pixart(
    pipe: PixArtAlphaPipeline, samples: Sequence[int], steps: int, *, guided: bool = True, **kwargs: Any
) -> Tensor:
    mask = torch.ones(len(samples), 8)
    return pipe(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=embeds(samples, 8, 32, salt=1),
        prompt_attention_mask=mask,
        negative_prompt_embeds=embeds(samples, 8, 32, salt=3),
        negative_prompt_attention_mask=mask,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE if guided else 1.0,
        use_resolution_binning=False,
        generator=generators(samples),
        output_type="latent",
        **{"height": 16, "width": 16, **kwargs},
    ).images


def make_wan() -> WanPipeline:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return WanPipeline(transformer=lively(transformer), vae=vae, scheduler=scheduler, text_encoder=None, tokenizer=None)


def draw_wan(pipe: WanPipeline, samples: Sequence[int], steps: int, *, guided: bool = True, **kwargs: Any) -> Tensor:
    return pipe(
        prompt_embeds=embeds(samples, 8, 32, salt=1),
        negative_prompt_embeds=embeds(samples, 8, 32, salt=3),
        num_inference_steps=steps,
        guidance_scale=GUIDANCE if guided else 1.0,
        num_frames=5,
        generator=generators(samples),
        output_type="latent",
        **{"height": 16, "width": 16, **kwargs},
    ).frames


def guided_flux(pipe: FluxPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return draw_flux(pipe, samples, steps, **{"guided": True, **kwargs})


PIPELINES = {
    "two streams and one (flux)": Tiny(make_flux, draw_flux),
    "sequential guidance with named branches (flux)": Tiny(make_flux, guided_flux),
    "two streams, batched guidance (sd3)": Tiny(make_sd3, draw_sd3),
    "one stream, batched guidance, learned variance (pixart)": Tiny(make_pixart, draw_pixart),
    "one stream, sequential guidance, video (wan)": Tiny(make_wan, draw_wan),
}
