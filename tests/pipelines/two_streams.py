"""Tiny text-to-image pipelines whose blocks carry picture and text."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor

from pipelines.parts import TEXT, autoencoder, common, flow, pooled, prompts, without
from pipelines.tiny import Tiny, embeds, lively


def make_flux2() -> Flux2Pipeline:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return Flux2Pipeline(scheduler=flow(), vae=autoencoder(), transformer=lively(transformer), **without(*TEXT))


def draw_flux2(pipe: Flux2Pipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(prompt_embeds=embeds(samples, 8, 32, salt=1), **common(samples, steps, **kwargs)).images


def make_chroma() -> ChromaPipeline:
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=64,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return ChromaPipeline(scheduler=flow(), vae=autoencoder(), transformer=lively(transformer), **without(*TEXT))


def draw_chroma(pipe: ChromaPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    given = prompts(samples, masked=True)
    given = {name: value.bool() if name.endswith("mask") else value for name, value in given.items()}
    return pipe(**given, **common(samples, steps, **kwargs)).images


def make_hidream() -> HiDreamImagePipeline:
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[32, 16],
        text_emb_dim=32,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1, 1, 0),
        force_inference_output=True,
    )
    nothing = without(*TEXT, *(f"{part}_{i}" for i in (2, 3, 4) for part in TEXT))
    pipe = HiDreamImagePipeline(scheduler=flow(), vae=autoencoder(), transformer=lively(transformer), **nothing)
    pipe.default_sample_size = 16  # it scales every size to this area
    return pipe


def draw_hidream(pipe: HiDreamImagePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(
        prompt_embeds_t5=embeds(samples, 8, 32, salt=1),
        negative_prompt_embeds_t5=embeds(samples, 8, 32, salt=3),
        prompt_embeds_llama3=embeds(samples, 2, 8, 16, salt=6).transpose(0, 1),
        negative_prompt_embeds_llama3=embeds(samples, 2, 8, 16, salt=7).transpose(0, 1),
        **pooled(samples),
        **common(samples, steps, **kwargs),
    ).images


def make_qwen() -> QwenImagePipeline:
    from diffusers import AutoencoderKLQwenImage

    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return QwenImagePipeline(scheduler=flow(), vae=vae, transformer=lively(transformer), **without(*TEXT))


def draw_qwen(pipe: QwenImagePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    masks = torch.ones(len(samples), 8, dtype=torch.int64)
    given = {**prompts(samples), "prompt_embeds_mask": masks, "negative_prompt_embeds_mask": masks}
    usual = {"guidance_scale": None, "true_cfg_scale": 4.0, "height": 16, "width": 16, **kwargs}
    return pipe(**given, **common(samples, steps, **usual)).images


def make_aura() -> AuraFlowPipeline:
    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return AuraFlowPipeline(transformer=lively(transformer), scheduler=flow(), vae=autoencoder(), **without(*TEXT))


def draw_aura(pipe: AuraFlowPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(**prompts(samples, masked=True), **common(samples, steps, **kwargs)).images


def make_cogview3() -> CogView3PlusPipeline:
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=8,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    return CogView3PlusPipeline(
        transformer=lively(transformer), scheduler=scheduler, vae=autoencoder(), **without(*TEXT)
    )


def draw_cogview(pipe: Any, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(**prompts(samples), **common(samples, steps, **kwargs)).images


def make_cogview4() -> CogView4Pipeline:
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
    )
    return CogView4Pipeline(transformer=lively(transformer), scheduler=flow(), vae=autoencoder(), **without(*TEXT))


def make_bria() -> BriaPipeline:
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    return BriaPipeline(transformer=lively(transformer), scheduler=flow(), vae=autoencoder(), **without(*TEXT))


def draw_bria(pipe: BriaPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(**prompts(samples), **common(samples, steps, **kwargs)).images


def make_ovis() -> OvisImagePipeline:
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    return OvisImagePipeline(transformer=lively(transformer), scheduler=flow(), vae=autoencoder(), **without(*TEXT))


def draw_ovis(pipe: OvisImagePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(negative_prompt=None, **prompts(samples), **common(samples, steps, **kwargs)).images


def make_longcat() -> LongCatImagePipeline:
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    nothing = without(*TEXT, "text_processor")
    pipe = LongCatImagePipeline(transformer=lively(transformer), scheduler=flow(), vae=autoencoder(), **nothing)
    pipe._encode_prompt = lambda texts: embeds([int(text) for text in texts], 8, 32)  # it takes no embeddings
    return pipe


def draw_longcat(pipe: LongCatImagePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    texts = {
        "prompt": [f"{1000 + sample}" for sample in samples],
        "negative_prompt": [f"{sample}" for sample in samples],
    }
    return pipe(enable_prompt_rewrite=False, **texts, **common(samples, steps, **kwargs)).images


TWO_STREAMS = {
    "FLUX.2": Tiny(make_flux2, draw_flux2),
    "Chroma": Tiny(make_chroma, draw_chroma),
    "HiDream": Tiny(make_hidream, draw_hidream),
    "Qwen-Image": Tiny(make_qwen, draw_qwen),
    "AuraFlow": Tiny(make_aura, draw_aura),
    "CogView 3 Plus": Tiny(make_cogview3, draw_cogview),
    "CogView 4": Tiny(make_cogview4, draw_cogview),
    "Bria": Tiny(make_bria, draw_bria),
    "Ovis": Tiny(make_ovis, draw_ovis),
    "LongCat": Tiny(make_longcat, draw_longcat),
}
