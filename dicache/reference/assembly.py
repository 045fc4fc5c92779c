"""The reference pipeline: a stock `FluxPipeline` around the shipped weights, ready in seconds, offline."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from dicache.reference.denoiser import denoiser
from dicache.reference.pixels import SpaceToDepth
from dicache.reference.render import SIDE
from dicache.reference.text import sentence_encoder, tokenizer, word_encoder
from dicache.reference.weights import MODEL, load

GUIDANCE = 3.5
STEPS = 28


def pipeline(*, shift: float = 1.0) -> FluxPipeline:
    """A `FluxPipeline` that draws 32 x 32 pictures of captions (see `dicache.reference.scenes`), in float32 on the CPU.

    Use guidance as it was trained: `pipe(caption, negative_prompt="", true_cfg_scale=3.5)`. `shift` bends the sigmas as
    FLUX does for large pictures: above 1, more steps at high noise. Raises ReferenceModelError if the weights are
    missing or damaged.
    """
    with torch.device("cpu"):
        modules = {"transformer": denoiser(), "words": word_encoder(), "sentence": sentence_encoder()}
    load(MODEL, modules)
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=SpaceToDepth(),
        text_encoder=modules["sentence"].eval(),
        tokenizer=tokenizer(),
        text_encoder_2=modules["words"].eval(),
        tokenizer_2=tokenizer(),
        transformer=modules["transformer"].eval(),
    )
    pipe.default_sample_size = SIDE // pipe.vae_scale_factor
    return pipe
