"""Emoji, drawn from their names in the shape of PixArt: a stock transformer that predicts v under that model's noise,
and a stock T5 encoder, small and trained here (`weights/emoji/README.md`), run by the stock `PixArtAlphaPipeline`.

    x_t = a_t x_0 + s_t eps,    v = a_t eps - s_t x_0,    a_t^2 = prod(1 - beta),    beta even from 0.0001 to 0.02

Pictures are 48 x 48; latents are their pixels moved into channels, (B, 12, 24, 24), and 144 tokens. Both branches of
guidance run in one call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from dicache.bench.models.emoji_names import FOLDER, LENGTH, tokenizer, vocabulary
from dicache.errors import ReferenceModelError
from dicache.reference.pixels import SpaceToDepth
from dicache.reference.weights import load

Solver = Literal["dpm++", "ddim", "euler", "unipc"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
MODEL = FOLDER / "model.safetensors"
GUIDANCE = 3.0
NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
SIDE, WIDTH = 48, 96
CALL: dict[str, Any] = {
    "guidance_scale": GUIDANCE,
    "clean_caption": False,
    "use_resolution_binning": False,
    "max_sequence_length": LENGTH,
}
"""What the pipeline is called with beside captions."""


def transformer() -> PixArtTransformer2DModel:
    """Untrained: v (B, 12, 24, 24) from a latent of that shape, a time and word features (B, 16, 96)."""
    return PixArtTransformer2DModel(
        num_attention_heads=5,
        attention_head_dim=32,
        in_channels=12,
        out_channels=12,
        num_layers=8,
        cross_attention_dim=160,
        caption_channels=WIDTH,
        sample_size=SIDE // 2,
        patch_size=2,
        use_additional_conditions=False,
    )


def text_encoder() -> T5EncoderModel:
    """Untrained: ids (B, 16) to a feature per word, (B, 16, 96)."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(vocabulary()),
            d_model=WIDTH,
            d_kv=24,
            d_ff=192,
            num_heads=4,
            num_layers=2,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=32,
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
        )
    )


def scheduler(solver: Solver) -> Any:  # noqa: ANN401
    """With times as they should be: from the last one trained on. Raises ValueError for another solver than SOLVERS."""
    makers: dict[str, Callable[[], Any]] = {
        "dpm++": lambda: DPMSolverMultistepScheduler(**NOISE, algorithm_type="dpmsolver++", solver_order=2),
        "ddim": lambda: DDIMScheduler(**NOISE, clip_sample=False),
        "euler": lambda: EulerDiscreteScheduler(**NOISE),
        "unipc": lambda: UniPCMultistepScheduler(**NOISE),
    }
    if solver not in makers:
        raise ValueError(f"there is no solver {solver!r} here. Expected one of {', '.join(SOLVERS)}.")
    return makers[solver]()


def pipeline(*, solver: Solver = "dpm++") -> PixArtAlphaPipeline:
    """A stock pipeline that draws 48 x 48 pictures of names (`dicache.bench.models.emoji_names`), in float32 on the
    CPU: `pipe("flat waving hand", **CALL)`.

    Raises ReferenceModelError if the weights are missing or damaged, ValueError for an unknown solver.
    """
    if not MODEL.exists():
        raise ReferenceModelError(
            f"there are no weights in {FOLDER}. Expected them in a checkout of dicache's repository, since the package "
            "comes without. Run the bench from a checkout."
        )
    with torch.device("cpu"):
        modules = {"transformer": transformer(), "text": text_encoder()}
    load(MODEL, modules)
    return PixArtAlphaPipeline(
        tokenizer=tokenizer(),
        text_encoder=modules["text"].eval(),
        vae=SpaceToDepth(),
        transformer=modules["transformer"].eval(),
        scheduler=scheduler(solver),
    )


def draw(
    pipe: PixArtAlphaPipeline, captions: Sequence[str], steps: int, *, first: int = 0, guidance: float = GUIDANCE
) -> Tensor:
    """Latents of the captions, (B, 12, 24, 24); row i has seed first + i."""
    latents: Tensor = pipe(
        list(captions),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(first + i) for i in range(len(captions))],
        output_type="latent",
        **{**CALL, "guidance_scale": guidance},
    ).images
    return latents


def pictures(latents: Tensor) -> Tensor:
    """Latents (B, 12, 24, 24) as pictures (B, 3, 48, 48) in [0, 1]."""
    return F.pixel_shuffle(latents, 2).mul(0.5).add(0.5).clamp(0, 1)
