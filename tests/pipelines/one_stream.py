"""Tiny text-to-image pipelines whose blocks carry the picture alone, with the text beside it."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PRXPipeline,
    PRXTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor

from pipelines.parts import TEXT, autoencoder, common, flow, prompts, without
from pipelines.tiny import Tiny, embeds, generators, lively


def make_dit() -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        sample_size=16,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    return DiTPipeline(transformer=lively(transformer), vae=autoencoder(), scheduler=DDIMScheduler(clip_sample=False))


def draw_dit(pipe: DiTPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    """The pipeline decodes always, so the latents are caught on their way."""
    caught = []
    handle = pipe.vae.post_quant_conv.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    pipe([*samples], num_inference_steps=steps, generator=generators(samples), output_type="np", **kwargs)
    handle.remove()
    return caught[-1]


def make_sana() -> SanaPipeline:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=16,
    )
    return SanaPipeline(transformer=lively(transformer), scheduler=flow(), **without("vae", *TEXT))


def draw_sana(pipe: SanaPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"use_resolution_binning": False, "height": 128, "width": 128, **kwargs}
    return pipe(negative_prompt=None, **prompts(samples, masked=True), **common(samples, steps, **usual)).images


def make_lumina2() -> Lumina2Pipeline:
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=24,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 64, 64),
        cap_feat_dim=32,
    )
    return Lumina2Pipeline(transformer=lively(transformer), scheduler=flow(), vae=autoencoder(), **without(*TEXT))


def draw_lumina2(pipe: Lumina2Pipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(
        **prompts(samples, masked=True), **common(samples, steps, **{"height": 32, "width": 32, **kwargs})
    ).images


def make_lumina() -> LuminaPipeline:
    transformer = LuminaNextDiT2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=16,
        num_layers=4,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        learn_sigma=True,
        cross_attention_dim=32,
    )
    return LuminaPipeline(transformer=lively(transformer), scheduler=flow(), vae=autoencoder(), **without(*TEXT))


def draw_lumina(pipe: LuminaPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(clean_caption=False, **prompts(samples, masked=True), **common(samples, steps, **kwargs)).images


def make_z_image() -> ZImagePipeline:
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return ZImagePipeline(scheduler=flow(), vae=autoencoder(), transformer=lively(transformer), **without(*TEXT))


def draw_z_image(pipe: ZImagePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    given = {name: [*value] for name, value in prompts(samples, 8, 16).items()}
    return pipe(**given, **common(samples, steps, **kwargs)).images


def make_hunyuan_dit() -> HunyuanDiTPipeline:
    transformer = HunyuanDiT2DModel(
        sample_size=16,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        hidden_size=16,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        text_len=8,
        text_len_t5=8,
        activation_fn="gelu-approximate",
    )
    nothing = without(*TEXT, "text_encoder_2", "tokenizer_2", "safety_checker", "feature_extractor")
    return HunyuanDiTPipeline(
        transformer=lively(transformer),
        scheduler=DDPMScheduler(clip_sample=False),
        vae=autoencoder(),
        **nothing,
        requires_safety_checker=False,
    )


def draw_hunyuan_dit(pipe: HunyuanDiTPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    one = prompts(samples, masked=True)
    two = {f"{name}_2": value for name, value in one.items()}
    usual = {"use_resolution_binning": False, **kwargs}
    return pipe(**one, **two, **common(samples, steps, **usual)).images


def make_prx() -> PRXPipeline:
    transformer = PRXTransformer2DModel(
        in_channels=4, context_in_dim=32, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=4, axes_dim=[4, 4]
    )
    return PRXPipeline(transformer=lively(transformer), scheduler=flow(), vae=autoencoder(), **without(*TEXT))


def draw_prx(pipe: PRXPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    """Without guidance, with which the pipeline takes one prompt at a time."""
    usual = {"use_resolution_binning": False, "guidance_scale": 1.0, **kwargs}
    masks = torch.ones(len(samples), 8, dtype=torch.bool)
    given = {"prompt_embeds": embeds(samples, 8, 32, salt=1), "prompt_attention_mask": masks}
    return pipe(**given, **common(samples, steps, **usual)).images


ONE_STREAM = {
    "DiT": Tiny(make_dit, draw_dit),
    "Sana": Tiny(make_sana, draw_sana),
    "Lumina 2": Tiny(make_lumina2, draw_lumina2),
    "Lumina Next": Tiny(make_lumina, draw_lumina),
    "Z-Image": Tiny(make_z_image, draw_z_image),
    "HunyuanDiT": Tiny(make_hunyuan_dit, draw_hunyuan_dit),
    "PRX": Tiny(make_prx, draw_prx),
}
