"""What the tiny pipelines of all families share: prompts of embeddings, autoencoders, the arguments of a call."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from pipelines.tiny import GUIDANCE, embeds, generators

TOKENS, WIDTH = 8, 32
TEXT = ("text_encoder", "tokenizer")


def prompts(
    samples: Sequence[int], tokens: int = TOKENS, width: int = WIDTH, *, masked: bool = False
) -> dict[str, Any]:
    """Prompt and negative prompt, (B, tokens, width) each, with their masks where the pipeline asks for them."""
    facts: dict[str, Any] = {
        "prompt_embeds": embeds(samples, tokens, width, salt=1),
        "negative_prompt_embeds": embeds(samples, tokens, width, salt=3),
    }
    if masked:
        facts["prompt_attention_mask"] = torch.ones(len(samples), tokens, dtype=torch.int64)
        facts["negative_prompt_attention_mask"] = torch.ones(len(samples), tokens, dtype=torch.int64)
    return facts


def pooled(samples: Sequence[int], width: int = WIDTH) -> dict[str, Tensor]:
    return {
        "pooled_prompt_embeds": embeds(samples, width, salt=2),
        "negative_pooled_prompt_embeds": embeds(samples, width, salt=4),
    }


def common(samples: Sequence[int], steps: int, **kwargs: Any) -> dict[str, Any]:
    """What every pipeline is called with."""
    usual = {"num_inference_steps": steps, "generator": generators(samples), "output_type": "latent"}
    return {**usual, "guidance_scale": GUIDANCE, "height": 16, "width": 16, **kwargs}


def pictures(samples: Sequence[int], size: int = 16) -> Tensor:
    """(B, 3, size, size) in [0, 1], one per sample."""
    return embeds(samples, 3, size, size, salt=5).sigmoid()


def autoencoder(channels: int = 4) -> AutoencoderKL:
    """One that keeps height and width, and whose encoder has no variance: some pipelines sample it without a seed."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4,), latent_channels=channels, norm_num_groups=1, shift_factor=0.06, scaling_factor=1.5
    )
    vae.quant_conv.weight.data[channels:], vae.quant_conv.bias.data[channels:] = 0.0, -100.0
    return vae


def without(*names: str) -> dict[str, None]:
    """The components that a pipeline does not need when it is given embeddings."""
    return dict.fromkeys(names)


def flow(**kwargs: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**kwargs)
