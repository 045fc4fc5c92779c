"""Tiny pipelines that start from a picture, follow a control, or perturb a third guidance branch."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetXSAdapter,
    DDIMScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DControlNetModel,
    HunyuanDiTControlNetPipeline,
    PixArtSigmaPAGPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from pipelines.one_stream import draw_hunyuan_dit, make_hunyuan_dit
from pipelines.parts import autoencoder, common, pictures, prompts, without
from pipelines.tiny import Tiny, draw_flux, draw_pixart, draw_sd3, guided_flux, lively, make_flux, make_pixart, make_sd3
from pipelines.two_streams import draw_qwen, make_qwen


def components(pipe: Any, *without: str) -> dict[str, Any]:
    """Those of another pipeline, with an autoencoder that can encode pictures."""
    vae = autoencoder(pipe.vae.config.get("latent_channels", 4)) if isinstance(pipe.vae, AutoencoderKL) else pipe.vae
    return {name: part for name, part in {**pipe.components, "vae": vae}.items() if name not in without}


def controlling(model: nn.Module) -> nn.Module:
    """Its zero-initialised projections are filled too: else control does nothing."""
    return lively(model)


def make_flux_img2img() -> FluxImg2ImgPipeline:
    return FluxImg2ImgPipeline(**components(make_flux()))


def draw_flux_img2img(pipe: FluxImg2ImgPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    """Half of the steps are left out, so twice as many are asked for."""
    return draw_flux(pipe, samples, 2 * steps, image=pictures(samples, 32), strength=0.5, **kwargs)


def make_flux_inpaint() -> FluxInpaintPipeline:
    return FluxInpaintPipeline(**components(make_flux()))


def draw_flux_inpaint(pipe: FluxInpaintPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    mask = torch.zeros(len(samples), 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    given = {"image": pictures(samples, 32), "mask_image": mask, "strength": 0.5}
    return draw_flux(pipe, samples, 2 * steps, **given, **kwargs)


def make_flux_fill() -> FluxFillPipeline:
    pipe = make_flux()
    # latents, the masked picture's, and the mask: 4 + 4 + 4 channels after packing
    transformer = FluxTransformer2DModel.from_config(pipe.transformer.config, in_channels=12, out_channels=4)
    return FluxFillPipeline(
        transformer=lively(transformer), **components(pipe, "transformer", "image_encoder", "feature_extractor")
    )


def draw_flux_fill(pipe: FluxFillPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    mask = torch.zeros(len(samples), 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    return draw_flux(pipe, samples, steps, image=pictures(samples, 32), mask_image=mask, **kwargs)


def make_flux_control() -> FluxControlNetPipeline:
    pipe = make_flux()
    controlnet = FluxControlNetModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 6, 6],
    )
    return FluxControlNetPipeline(controlnet=controlling(controlnet), **components(pipe))


def draw_flux_control(pipe: FluxControlNetPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"controlnet_conditioning_scale": 0.3, **kwargs}
    return draw_flux(pipe, samples, steps, control_image=pictures(samples), **usual)


def make_sd3_control() -> StableDiffusion3ControlNetPipeline:
    pipe = make_sd3()
    controlnet = SD3ControlNetModel(
        sample_size=32,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    return StableDiffusion3ControlNetPipeline(controlnet=controlling(controlnet), **components(pipe))


def draw_sd3_control(
    pipe: StableDiffusion3ControlNetPipeline, samples: Sequence[int], steps: int, **kwargs: Any
) -> Tensor:
    usual = {"controlnet_conditioning_scale": 0.3, **kwargs}
    torch.manual_seed(0)  # the picture is encoded without a generator
    return draw_sd3(pipe, samples, steps, control_image=pictures(samples), **usual)


def draw_sd3_skip(pipe: Any, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    """A third branch in a call of its own, with a block left out, in three quarters of the steps."""
    window = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.75}
    return draw_sd3(pipe, samples, steps, skip_guidance_layers=[1], **window, **kwargs)


def make_sd3_perturbed() -> StableDiffusion3PAGPipeline:
    return StableDiffusion3PAGPipeline(
        pag_applied_layers=["blocks.1"], **components(make_sd3(), "image_encoder", "feature_extractor")
    )


def make_pixart_perturbed() -> PixArtSigmaPAGPipeline:
    return PixArtSigmaPAGPipeline(pag_applied_layers=["blocks.1"], **components(make_pixart()))


def make_qwen_control() -> QwenImageControlNetPipeline:
    pipe = make_qwen()
    controlnet = QwenImageControlNetModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
    )
    return QwenImageControlNetPipeline(controlnet=controlling(controlnet), **components(pipe))


def draw_qwen_control(pipe: QwenImageControlNetPipeline, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"controlnet_conditioning_scale": 0.3, **kwargs}
    return draw_qwen(pipe, samples, steps, control_image=pictures(samples), **usual)


def make_hunyuan_control() -> HunyuanDiTControlNetPipeline:
    pipe = make_hunyuan_dit()
    config = pipe.transformer.config
    same = ("num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "sample_size", "hidden_size")
    more = ("cross_attention_dim", "cross_attention_dim_t5", "pooled_projection_dim", "text_len", "text_len_t5")
    controlnet = HunyuanDiT2DControlNetModel(
        transformer_num_layers=4, **{name: config[name] for name in (*same, *more)}
    )
    return HunyuanDiTControlNetPipeline(
        controlnet=controlling(controlnet), requires_safety_checker=False, **components(pipe)
    )


def draw_hunyuan_control(pipe: Any, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"controlnet_conditioning_scale": 0.3, **kwargs}
    torch.manual_seed(0)  # the picture is encoded without a generator
    return draw_hunyuan_dit(pipe, samples, steps, control_image=pictures(samples), **usual)


def make_unet(layers: int = 1, widths: Sequence[int] = (4, 8)) -> StableDiffusionPipeline:
    """One level for every width; all but the outer one attend to the prompt."""
    unet = UNet2DConditionModel(
        block_out_channels=widths,
        layers_per_block=layers,
        sample_size=8,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (len(widths) - 1)),
        up_block_types=(*["CrossAttnUpBlock2D"] * (len(widths) - 1), "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=2,
        attention_head_dim=4,
    )
    nothing = without("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
    scheduler = DDIMScheduler(clip_sample=False)
    return StableDiffusionPipeline(
        unet=lively(unet), vae=autoencoder(), scheduler=scheduler, requires_safety_checker=False, **nothing
    )


def draw_unet(pipe: Any, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    return pipe(**prompts(samples), **common(samples, steps, **kwargs)).images


def make_unet_control() -> StableDiffusionControlNetPipeline:
    pipe = make_unet()
    controlnet = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4,))
    return StableDiffusionControlNetPipeline(
        controlnet=controlling(controlnet), requires_safety_checker=False, **components(pipe)
    )


def draw_unet_control(pipe: Any, samples: Sequence[int], steps: int, **kwargs: Any) -> Tensor:
    usual = {"controlnet_conditioning_scale": 0.3, **kwargs}
    return draw_unet(pipe, samples, steps, image=pictures(samples), **usual)


def make_unet_control_xs() -> StableDiffusionControlNetXSPipeline:
    """Its control is part of the denoiser."""
    pipe = make_unet(layers=2)
    control = ControlNetXSAdapter.from_unet(pipe.unet, size_ratio=1.0, conditioning_embedding_out_channels=(4,))
    parts = components(pipe, "image_encoder")
    return StableDiffusionControlNetXSPipeline(controlnet=controlling(control), requires_safety_checker=False, **parts)


CONTROLS = {
    "FLUX.1": Tiny(make_flux, draw_flux),
    "FLUX.1 guided": Tiny(make_flux, guided_flux),
    "SD 1.5": Tiny(make_unet, draw_unet),
    "SD 1.5 ControlNet": Tiny(make_unet_control, draw_unet_control),
    "SD 1.5 ControlNet-XS": Tiny(make_unet_control_xs, draw_unet_control),
    "FLUX.1 img2img": Tiny(make_flux_img2img, draw_flux_img2img),
    "FLUX.1 inpaint": Tiny(make_flux_inpaint, draw_flux_inpaint),
    "FLUX.1 fill": Tiny(make_flux_fill, draw_flux_fill),
    "FLUX.1 ControlNet": Tiny(make_flux_control, draw_flux_control),
    "SD3": Tiny(make_sd3, draw_sd3),
    "SD3 ControlNet": Tiny(make_sd3_control, draw_sd3_control),
    "SD3 skip-layer guidance": Tiny(make_sd3, draw_sd3_skip),
    "SD3 perturbed attention": Tiny(make_sd3_perturbed, draw_sd3),
    "PixArt": Tiny(make_pixart, draw_pixart),
    "PixArt perturbed attention": Tiny(make_pixart_perturbed, draw_pixart),
    "Qwen-Image ControlNet": Tiny(make_qwen_control, draw_qwen_control),
    "HunyuanDiT ControlNet": Tiny(make_hunyuan_control, draw_hunyuan_control),
}
