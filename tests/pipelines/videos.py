"""Tiny video and audio pipelines."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderOobleck,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    DDIMScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from torch import Tensor

from pipelines.parts import TEXT, autoencoder, common, flow, prompts, without
from pipelines.tiny import Tiny, draw_wan, embeds, lively, make_wan


def make_cogvideox() -> CogVideoXPipeline:
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=3,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=8,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    return CogVideoXPipeline(transformer=lively(transformer), scheduler=scheduler, **without("vae", *TEXT))


def draw_cogvideox(pipe: CogVideoXPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    given = {"num_frames": 8, "max_sequence_length": 8, **kwargs}
    return pipe(**prompts(samples), **common(samples, steps, **given)).frames


def make_hunyuan_video() -> HunyuanVideoPipeline:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=32,
        pooled_projection_dim=32,
        rope_axes_dim=(2, 4, 4),
    )
    nothing = without("vae", *TEXT, "text_encoder_2", "tokenizer_2")
    return HunyuanVideoPipeline(transformer=lively(transformer), scheduler=flow(), **nothing)


def draw_hunyuan_video(pipe: HunyuanVideoPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    masks = torch.ones(len(samples), 8, dtype=torch.int64)
    return pipe(
        prompt_embeds=embeds(samples, 8, 32, salt=1),
        pooled_prompt_embeds=embeds(samples, 32, salt=2),
        prompt_attention_mask=masks,
        negative_prompt_embeds=embeds(samples, 8, 32, salt=3),
        negative_pooled_prompt_embeds=embeds(samples, 32, salt=4),
        negative_prompt_attention_mask=masks,
        true_cfg_scale=4.0,
        num_frames=5,
        **common(samples, steps, **{"height": 32, "width": 32, **kwargs}),
    ).frames


def make_wan_pair() -> WanPipeline:
    """Wan 2.2: one expert for the noisy steps, one for the rest."""
    pipe = make_wan()
    second = WanTransformer3DModel.from_config(pipe.transformer.config)
    for parameter, other in zip(lively(second).parameters(), pipe.transformer.parameters(), strict=True):
        parameter.data.add_(other.flip(0), alpha=0.1)
    return WanPipeline(
        transformer=pipe.transformer,
        transformer_2=second,
        vae=pipe.vae,
        scheduler=pipe.scheduler,
        boundary_ratio=0.8,
        **without(*TEXT),
    )


def make_ltx() -> LTXPipeline:
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=32,
    )
    return LTXPipeline(transformer=lively(transformer), scheduler=flow(), **without("vae", *TEXT))


def draw_ltx(pipe: LTXPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"height": 64, "width": 64, "num_frames": 9, **kwargs}
    return pipe(**prompts(samples, masked=True), **common(samples, steps, **usual)).frames


def make_mochi() -> MochiPipeline:
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=16,
        in_channels=12,
        qk_norm="rms_norm",
        text_embed_dim=32,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    return MochiPipeline(transformer=lively(transformer), scheduler=flow(), **without("vae", *TEXT))


def draw_mochi(pipe: MochiPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"height": 32, "width": 32, "num_frames": 7, **kwargs}
    return pipe(**prompts(samples, masked=True), **common(samples, steps, **usual)).frames


def make_latte() -> LattePipeline:
    transformer = LatteTransformer3DModel(
        sample_size=8,
        video_length=3,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    return LattePipeline(transformer=lively(transformer), scheduler=scheduler, vae=autoencoder(), **without(*TEXT))


def draw_latte(pipe: LattePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"height": 8, "width": 8, "video_length": 3, "clean_caption": False, "mask_feature": False, **kwargs}
    return pipe(negative_prompt=None, **prompts(samples), **common(samples, steps, **usual)).frames


def make_allegro() -> AllegroPipeline:
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=32,
    )
    return AllegroPipeline(
        transformer=lively(transformer), scheduler=DDIMScheduler(clip_sample=False), **without("vae", *TEXT)
    )


def draw_allegro(pipe: AllegroPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"height": 32, "width": 32, "num_frames": 8, "clean_caption": False, **kwargs}
    return pipe(negative_prompt=None, **prompts(samples, masked=True), **common(samples, steps, **usual)).frames


def make_sana_video() -> SanaVideoPipeline:
    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=32,
        sample_size=8,
        rope_max_seq_len=32,
    )
    return SanaVideoPipeline(transformer=lively(transformer), scheduler=flow(), **without("vae", *TEXT))


def draw_sana_video(pipe: SanaVideoPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"height": 32, "width": 32, "frames": 5, "use_resolution_binning": False, **kwargs}
    return pipe(negative_prompt=None, **prompts(samples, masked=True), **common(samples, steps, **usual)).frames


def make_skyreels() -> SkyReelsV2Pipeline:
    transformer = SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    )
    return SkyReelsV2Pipeline(transformer=lively(transformer), scheduler=flow(), **without("vae", *TEXT))


def draw_skyreels(pipe: SkyReelsV2Pipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(
        **prompts(samples), **common(samples, steps, **{"height": 32, "width": 32, "num_frames": 5, **kwargs})
    ).frames


def make_ltx2() -> LTX2Pipeline:
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=3,
        caption_channels=32,
        rope_double_precision=False,
        rope_type="split",
        perturbed_attn=True,
    )
    both = ("num_attention_heads", "attention_head_dim", "num_layers", "num_learnable_registers")
    shape = dict(zip(both, (4, 8, 1, None), strict=True))
    connectors = LTX2TextConnectors(
        caption_channels=32,
        text_proj_in_factor=1,
        **{f"{stream}_connector_{name}": value for stream in ("video", "audio") for name, value in shape.items()},
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
    )
    voice = AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        causality_axis="height",
        mid_block_add_attention=False,
        mel_bins=8,
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        patch_size_t=1,
    )
    pipe = LTX2Pipeline(
        transformer=lively(transformer),
        scheduler=flow(),
        connectors=lively(connectors),
        audio_vae=voice,
        vae=vae,
        **without(*TEXT, "vocoder"),
    )
    pipe.vae_spatial_compression_ratio = 16
    return pipe


def draw_ltx2(pipe: LTX2Pipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    """Video and audio of a sample in one row, (B, D). Four branches in three calls of different batch sizes."""
    usual = {"height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0, **kwargs}
    usual |= {"spatio_temporal_guidance_blocks": [1], "audio_guidance_scale": 4.0}
    video, audio = pipe(**prompts(samples, masked=True), **common(samples, steps, **usual), return_dict=False)
    return torch.cat([video.flatten(1), audio.flatten(1)], dim=1)


class Guardrail:
    """In place of the safety checker, which looks at decoded pictures."""

    def to(self, *_: Any) -> "Guardrail":
        return self


def make_cosmos() -> Cosmos2TextToImagePipeline:
    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
        extra_pos_embed_type="learnable",
    )
    nothing = without("vae", *TEXT)
    return Cosmos2TextToImagePipeline(
        transformer=lively(transformer), scheduler=flow(use_karras_sigmas=True), safety_checker=Guardrail(), **nothing
    )


def draw_cosmos(pipe: Cosmos2TextToImagePipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(**prompts(samples), **common(samples, steps, **{"height": 32, "width": 32, **kwargs})).images


def make_kandinsky() -> Kandinsky5T2VPipeline:
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=4,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 2, 2),
    )
    nothing = without("vae", *TEXT, "text_encoder_2", "tokenizer_2")
    return Kandinsky5T2VPipeline(transformer=lively(transformer), scheduler=flow(), **nothing)


def draw_kandinsky(pipe: Kandinsky5T2VPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    lengths = torch.arange(len(samples) + 1, dtype=torch.int32) * 8
    return pipe(
        prompt_embeds_qwen=embeds(samples, 8, 32, salt=1),
        prompt_embeds_clip=embeds(samples, 32, salt=2),
        negative_prompt_embeds_qwen=embeds(samples, 8, 32, salt=3),
        negative_prompt_embeds_clip=embeds(samples, 32, salt=4),
        prompt_cu_seqlens=lengths,
        negative_prompt_cu_seqlens=lengths,
        num_frames=5,
        **common(samples, steps, **{"height": 32, "width": 32, **kwargs}),
    ).frames


def make_stable_audio() -> StableAudioPipeline:
    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=16,
        cross_attention_input_dim=8,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    durations = StableAudioProjectionModel(text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32)
    return StableAudioPipeline(
        transformer=lively(transformer),
        vae=vae,
        projection_model=durations,
        scheduler=DDIMScheduler(clip_sample=False),
        **without(*TEXT),
    )


def draw_stable_audio(pipe: StableAudioPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = common(samples, steps, **kwargs)
    del usual["height"], usual["width"]
    return pipe(**prompts(samples, width=8), **usual).audios


VIDEOS = {
    "Wan 2.1": Tiny(make_wan, draw_wan),
    "Wan 2.2, two experts": Tiny(make_wan_pair, draw_wan),
    "CogVideoX": Tiny(make_cogvideox, draw_cogvideox),
    "HunyuanVideo": Tiny(make_hunyuan_video, draw_hunyuan_video),
    "LTX": Tiny(make_ltx, draw_ltx),
    "LTX 2": Tiny(make_ltx2, draw_ltx2),
    "Mochi": Tiny(make_mochi, draw_mochi),
    "Latte": Tiny(make_latte, draw_latte),
    "Allegro": Tiny(make_allegro, draw_allegro),
    "Sana Video": Tiny(make_sana_video, draw_sana_video),
    "SkyReels V2": Tiny(make_skyreels, draw_skyreels),
    "Cosmos 2": Tiny(make_cosmos, draw_cosmos),
    "Kandinsky 5": Tiny(make_kandinsky, draw_kandinsky),
    "Stable Audio": Tiny(make_stable_audio, draw_stable_audio),
}
