"""Tiny text-to-image pipelines."""

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
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PRXPipeline,
    PRXTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor

from pipelines.parts import autoencoder, common, pooled, prompts, without
from pipelines.tiny import Tiny, embeds, generators, lively

TEXT = ("text_encoder", "tokenizer")


def flow(**kwargs: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**kwargs)


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
        scheduler=DDPMScheduler(),
        vae=autoencoder(),
        **nothing,
        requires_safety_checker=False,
    )


def draw_hunyuan_dit(pipe: HunyuanDiTPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    one = prompts(samples, masked=True)
    two = {f"{name}_2": value for name, value in one.items()}
    usual = {"use_resolution_binning": False, **kwargs}
    return pipe(**one, **two, **common(samples, steps, **usual)).images


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


IMAGES = {
    "FLUX.2": Tiny(make_flux2, draw_flux2),
    "DiT": Tiny(make_dit, draw_dit),
    "Sana": Tiny(make_sana, draw_sana),
    "Lumina 2": Tiny(make_lumina2, draw_lumina2),
    "Lumina Next": Tiny(make_lumina, draw_lumina),
    "Chroma": Tiny(make_chroma, draw_chroma),
    "HiDream": Tiny(make_hidream, draw_hidream),
    "Qwen-Image": Tiny(make_qwen, draw_qwen),
    "Z-Image": Tiny(make_z_image, draw_z_image),
    "AuraFlow": Tiny(make_aura, draw_aura),
    "HunyuanDiT": Tiny(make_hunyuan_dit, draw_hunyuan_dit),
    "CogView 3 Plus": Tiny(make_cogview3, draw_cogview),
    "CogView 4": Tiny(make_cogview4, draw_cogview),
    "Bria": Tiny(make_bria, draw_bria),
    "Ovis": Tiny(make_ovis, draw_ovis),
    "LongCat": Tiny(make_longcat, draw_longcat),
    "PRX": Tiny(make_prx, draw_prx),
}
