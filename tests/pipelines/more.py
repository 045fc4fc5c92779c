"""Tiny pipelines whose guidance, blocks or streams are of a kind of their own."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKLFlux2,
    ClassifierFreeGuidance,
    DDIMScheduler,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    Flux2KleinKVPipeline,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig, T5Config, T5EncoderModel

from pipelines.parts import TEXT, autoencoder, common, flow, pictures, pooled, prompts, without
from pipelines.tiny import GUIDANCE, Tiny, embeds, lively, make_wan
from pipelines.two_streams import make_flux2


def make_krea() -> Krea2Pipeline:
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )
    return Krea2Pipeline(transformer=lively(transformer), scheduler=flow(), **without("vae", *TEXT))


def draw_krea(pipe: Krea2Pipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    masks = torch.ones(len(samples), 8, dtype=torch.bool)
    return pipe(
        prompt_embeds=embeds(samples, 8, 2, 16, salt=1),
        negative_prompt_embeds=embeds(samples, 8, 2, 16, salt=3),
        prompt_embeds_mask=masks,
        negative_prompt_embeds_mask=masks,
        **common(samples, steps, **{"height": 64, "width": 64, **kwargs}),
    ).images


def make_audio_ldm() -> AudioLDM2Pipeline:
    unet = AudioLDM2UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=((None, 32, 32), (None, 32, 32)),
        norm_num_groups=2,
        attention_head_dim=4,
    )
    shape = {"vocab_size": 8, "d_model": 32, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1}
    text = T5EncoderModel(T5Config(**shape))
    sound = SpeechT5HifiGanConfig(
        model_in_dim=8, upsample_initial_channel=8, upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4]
    )
    nothing = without("vae", "text_encoder", "projection_model", "tokenizer", "tokenizer_2", "feature_extractor")
    return AudioLDM2Pipeline(
        unet=lively(unet),
        scheduler=DDIMScheduler(clip_sample=False),
        vocoder=SpeechT5HifiGan(sound),
        text_encoder_2=text,
        language_model=text,
        **nothing,
    )


def draw_audio_ldm(pipe: AudioLDM2Pipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    masks = torch.ones(len(samples), 8, dtype=torch.long)
    usual = common(samples, steps, **kwargs)
    del usual["height"], usual["width"]
    return pipe(
        **prompts(samples, 8, 32),
        generated_prompt_embeds=embeds(samples, 6, 32, salt=4),
        negative_generated_prompt_embeds=embeds(samples, 6, 32, salt=5),
        attention_mask=masks,
        negative_attention_mask=masks,
        audio_length_in_s=0.016,
        **usual,
    ).audios


class QwenProcessor:
    """Stands for the one of Qwen3-VL where embeddings are handed over."""

    image_token, tokenizer = "<|image_pad|>", SimpleNamespace(encode=lambda text: [1])

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [[1, 2, 3]]


class EmbeddedQwen(QwenImage21Pipeline):
    def encode_prompt(self, prompt_embeds: Tensor, **kwargs: Any) -> tuple[Tensor, None, Tensor]:
        return prompt_embeds, None, torch.zeros(prompt_embeds.shape[:2], dtype=torch.bool)


def make_qwen21() -> QwenImage21Pipeline:
    transformer = QwenImage21Transformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    parts = {"transformer": lively(transformer), "scheduler": flow(), "processor": QwenProcessor()}
    return EmbeddedQwen(**parts, **without("vae", "text_encoder"))


def draw_qwen21(pipe: QwenImage21Pipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = common(samples, steps, **{"height": 64, "width": 64, "use_kv_cache": False, **kwargs})
    return pipe(**prompts(samples, 8, 32), true_cfg_scale=usual.pop("guidance_scale"), **usual).images


def make_ernie() -> ErnieImagePipeline:
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=3,
        ffn_hidden_size=32,
        in_channels=8,
        out_channels=8,
        text_in_dim=32,
        rope_axes_dim=(8, 4, 4),
    )
    return ErnieImagePipeline(transformer=lively(transformer), scheduler=flow(), **without("vae", *TEXT))


def draw_ernie(pipe: ErnieImagePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    given = {name: [*value] for name, value in prompts(samples).items()}
    usual = {"height": 64, "width": 64, **kwargs}
    return pipe(use_pe=False, **given, **common(samples, steps, **usual)).images


def make_hunyuan_image() -> HunyuanImagePipeline:
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=32,
        text_embed_2_dim=32,
        rope_axes_dim=(4, 4),
    )
    guider = ClassifierFreeGuidance(guidance_scale=GUIDANCE)
    nothing = without("vae", *TEXT, "text_encoder_2", "tokenizer_2")
    return HunyuanImagePipeline(transformer=lively(transformer), scheduler=flow(), guider=guider, **nothing)


def draw_hunyuan_image(pipe: HunyuanImagePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    masks = torch.ones(len(samples), 8, dtype=torch.int64)
    one = prompts(samples)
    two = {"prompt_embeds_2": one["negative_prompt_embeds"], "negative_prompt_embeds_2": one["prompt_embeds"]}
    marks = {f"{name}_mask{i}": masks for name in ("prompt_embeds", "negative_prompt_embeds") for i in ("", "_2")}
    usual = common(samples, steps, **{"height": 128, "width": 128, **kwargs})
    del usual["guidance_scale"]
    return pipe(**one, **two, **marks, **usual).images


def make_motif() -> MotifVideoPipeline:
    transformer = MotifVideoTransformer3DModel(
        in_channels=33,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=4,
        num_decoder_layers=2,
        text_embed_dim=32,
        rope_axes_dim=(4, 4, 4),
    )
    guider = ClassifierFreeGuidance(guidance_scale=GUIDANCE)
    return MotifVideoPipeline(
        transformer=lively(transformer), scheduler=flow(), vae=make_wan().vae, guider=guider, **without(*TEXT)
    )


def draw_motif(pipe: MotifVideoPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = common(samples, steps, **{"height": 32, "width": 32, "num_frames": 5, **kwargs})
    del usual["guidance_scale"]
    return pipe(**prompts(samples, masked=True), **usual).frames


def make_easy() -> EasyAnimatePipeline:
    vae = autoencoder()
    vae.spatial_compression_ratio, vae.temporal_compression_ratio = 8, 4
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=3,
        mmdit_layers=2,
        time_embed_dim=8,
        text_embed_dim=32,
        sample_width=8,
        sample_height=8,
    )
    return EasyAnimatePipeline(transformer=lively(transformer), scheduler=flow(), vae=vae, **without(*TEXT))


def draw_easy(pipe: EasyAnimatePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"height": 32, "width": 32, "num_frames": 5, **kwargs}
    return pipe(**prompts(samples, 6, masked=True), **common(samples, steps, **usual)).frames


def make_sdxl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=2,
        attention_head_dim=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
    )
    nothing = without(*TEXT, "text_encoder_2", "tokenizer_2")
    return StableDiffusionXLPipeline(
        unet=lively(unet), vae=autoencoder(), scheduler=DDIMScheduler(clip_sample=False), **nothing
    )


def draw_sdxl(pipe: StableDiffusionXLPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(**prompts(samples), **pooled(samples), **common(samples, steps, **kwargs)).images


def make_flux2_cached() -> Flux2KleinKVPipeline:
    """Its first step writes the reference picture's keys and values, the others read them."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 4), latent_channels=4, norm_num_groups=1, layers_per_block=1, **blocks
    )
    return Flux2KleinKVPipeline(**{**make_flux2().components, "vae": vae})


def draw_flux2_cached(pipe: Flux2KleinKVPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = common(samples, steps, **kwargs)
    del usual["guidance_scale"]
    picture = to_pil_image(pictures([1], 64)[0])
    return pipe(image=picture, prompt_embeds=embeds(samples, 8, 32, salt=1), **usual).images


def to_pil_image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy())


MORE = {
    "FLUX.2 with a key-value cache": Tiny(make_flux2_cached, draw_flux2_cached),
    "Qwen-Image 2.1": Tiny(make_qwen21, draw_qwen21),
    "Krea 2": Tiny(make_krea, draw_krea),
    "Ernie-Image": Tiny(make_ernie, draw_ernie),
    "HunyuanImage": Tiny(make_hunyuan_image, draw_hunyuan_image),
    "Motif Video": Tiny(make_motif, draw_motif),
    "EasyAnimate": Tiny(make_easy, draw_easy),
    "SDXL": Tiny(make_sdxl, draw_sdxl),
    "AudioLDM 2": Tiny(make_audio_ldm, draw_audio_ldm),
}
