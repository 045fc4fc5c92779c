"""The scenes of the reference model in the shape of Stable Diffusion: a stock UNet that predicts eps, a stock CLIP text
model and a stock ControlNet, small and trained here (`weights/scenes-unet/README.md`), run by stock pipelines.

    x_t = a_t x_0 + s_t eps,    a_t^2 = prod(1 - beta),    sqrt(beta) even from sqrt(0.00085) to sqrt(0.01415)

Latents are pictures moved into channels, (B, 12, 16, 16). The ControlNet sees the edges of a scene without its colours.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from dicache.errors import ReferenceModelError
from dicache.reference.pixels import SpaceToDepth
from dicache.reference.text import LENGTH, VOCABULARY, tokenizer
from dicache.reference.weights import load

Solver = Literal["ddim", "pndm", "dpm++", "euler a"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
FOLDER = Path(__file__).parent / "weights" / "scenes-unet"
MODEL, CONTROL = FOLDER / "model.safetensors", FOLDER / "controlnet.safetensors"
GUIDANCE = 3.0
NOISE: dict[str, Any] = {
    "num_train_timesteps": 800,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.01415,
    "timestep_spacing": "trailing",
}
"""Ends where the signal is 0.084 of a latent, about as Stable Diffusion's: what eps is off by counts 12 times in the
picture there. Of 1000 steps up to 0.02 the last 200 made noise of so small a model's errors, 64 times as large.
"""
WIDTH = 96
SMOOTHED = [*range(8), *range(24, 32)]
"""Columns of the time embedding's first layer that stay zero: the 8 fastest of its 24 sines and cosines, as in the
reference denoiser.
"""


def unet() -> UNet2DConditionModel:
    """Untrained: eps (B, 12, 16, 16) from a latent of that shape, a time and word features (B, 28, 96)."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=12,
        out_channels=12,
        block_out_channels=(48, 64, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=(1, 2, 4),
        norm_num_groups=8,
    )


def text_encoder() -> CLIPTextModel:
    """Untrained: ids (B, 28) to a feature per word, (B, 28, 96). A shape's token stands last in the name of its thing,
    so that reading left to right is enough.
    """
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            attention_dropout=0.0,
            pad_token_id=VOCABULARY["<pad>"],
            bos_token_id=None,
            eos_token_id=VOCABULARY["</s>"],
        )
    )


def controlnet(model: UNet2DConditionModel) -> ControlNetModel:
    """Not trained: the UNet's own first half, which adds nothing yet. Sees edges (B, 3, 32, 32)."""
    return ControlNetModel.from_unet(model, conditioning_embedding_out_channels=(16, 32))


def edges(pictures: Tensor) -> Tensor:
    """What the ControlNet sees of pictures (B, 3, 32, 32) in [0, 1]: outlines without colours, of that shape and range,
    from the strongest change of a channel over two pixels.
    """
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.hypot(across, down).amax(1, keepdim=True).mul(2).clamp(max=1).expand_as(pictures).contiguous()


def scheduler(solver: Solver) -> Any:  # noqa: ANN401
    """With times as they should be: from the last one trained on. Raises ValueError for another solver than SOLVERS."""
    makers: dict[str, Callable[[], Any]] = {
        "ddim": lambda: DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=True, steps_offset=1),
        "pndm": lambda: PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=True, steps_offset=1),
        "dpm++": lambda: DPMSolverMultistepScheduler(**NOISE, algorithm_type="dpmsolver++", solver_order=2),
        "euler a": lambda: EulerAncestralDiscreteScheduler(**NOISE),
    }
    if solver not in makers:
        raise ValueError(f"there is no solver {solver!r} here. Expected one of {', '.join(SOLVERS)}.")
    return makers[solver]()


def pipeline(*, control: bool = False, solver: Solver = "ddim") -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline`, or with `control` a `StableDiffusionControlNetPipeline`, that draws 32 x 32 pictures
    of captions (see `dicache.reference.scenes`), in float32 on the CPU.

    Guided as it was trained: `pipe(caption, negative_prompt="", guidance_scale=GUIDANCE)`, and `image=edges(pictures)`.
    Raises ReferenceModelError if the weights are missing or damaged, ValueError for an unknown solver.
    """
    if not MODEL.exists():
        raise ReferenceModelError(
            f"there are no weights in {FOLDER}. Expected them in a checkout of dicache's repository, since the package "
            "comes without. Run the bench from a checkout."
        )
    with torch.device("cpu"):
        modules = {"unet": unet(), "text": text_encoder()}
        load(MODEL, modules)
        networks = {"controlnet": controlnet(modules["unet"])} if control else {}
        if control:
            load(CONTROL, networks)
    make = StableDiffusionControlNetPipeline if control else StableDiffusionPipeline
    return make(
        vae=SpaceToDepth(),
        text_encoder=modules["text"].eval(),
        tokenizer=tokenizer(),
        unet=modules["unet"].eval(),
        scheduler=scheduler(solver),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **{name: network.eval() for name, network in networks.items()},
    )


def draw(
    pipe: StableDiffusionPipeline,
    captions: Sequence[str],
    steps: int,
    *,
    first: int = 0,
    guidance: float = GUIDANCE,
    image: Tensor | None = None,
) -> Tensor:
    """Latents of the captions, (B, 12, 16, 16); row i has seed first + i. `image` holds edges (B, 3, 32, 32) for a
    pipeline with control.
    """
    shown = {} if image is None else {"image": image}
    latents: Tensor = pipe(
        list(captions),
        negative_prompt=[""] * len(captions),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(first + i) for i in range(len(captions))],
        output_type="latent",
        **shown,
    ).images
    return latents


def pictures(latents: Tensor) -> Tensor:
    """Latents (B, 12, 16, 16) as pictures (B, 3, 32, 32) in [0, 1]."""
    return F.pixel_shuffle(latents, 2).mul(0.5).add(0.5).clamp(0, 1)
