"""Clips of moving things in the shape of Wan: a stock video transformer that predicts the flow, and a stock UMT5
encoder, small and trained here, run by the stock `WanPipeline`.

    x_s = (1 - s) x_0 + s eps,    v = eps - x_0

A clip has 16 frames of 32 x 32; latents are their pixels moved into channels, (B, 12, 16, 16, 16), and 1,024 tokens.
One or two things stand or move over a plain background, and bounce off its edges:

    caption = thing {"," thing} "on" colour "background"
    thing   = cell size colour shape ("still" | ("slowly" | "quickly") ("left" | "right" | "up" | "down"))

so that captions differ in how much changes from frame to frame.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dicache.errors import ReferenceModelError
from dicache.reference.render import render
from dicache.reference.scenes import CELLS, COLOURS, SHAPES, SIZES, Background, Scene, Split, Thing, split_of
from dicache.reference.weights import load

Solver = Literal["euler", "unipc", "dpm++"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
FOLDER = Path(__file__).parent / "weights" / "clips"
MODEL = FOLDER / "model.safetensors"
GUIDANCE, SHIFT = 3.0, 3.0
FRAMES, SIDE, WIDTH, LENGTH = 16, 32, 96, 24
CALL: dict[str, Any] = {
    "negative_prompt": "",
    "guidance_scale": GUIDANCE,
    "height": SIDE,
    "width": SIDE,
    "num_frames": FRAMES - 1,
    "max_sequence_length": LENGTH,
}
"""What the pipeline is called with beside captions. It adds one to a number of frames that its autoencoder does not
divide by time.
"""
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
PACES = {"slowly": 0.25, "quickly": 1.1}
"""Of the picture's side, over a clip."""
NEAR, FAR = 0.12, 0.88
"""Where things bounce."""
_PAD, _END = "<pad>", "</s>"
WORDS = ("on", "background", "still", *PACES, *DIRECTIONS, *CELLS, *SIZES, *COLOURS, *SHAPES)
VOCABULARY = {word: i for i, word in enumerate((_PAD, _END, *dict.fromkeys(WORDS)))}


@dataclass(frozen=True)
class Mover:
    """A thing at its cell in the first frame, and where it goes: (0, 0) or a pace times a direction."""

    thing: Thing
    motion: str
    velocity: tuple[float, float]

    @property
    def caption(self) -> str:
        return f"{self.thing.cell} {self.thing.size} {self.thing.colour} {self.thing.shape} {self.motion}"

    def at(self, share: float) -> Thing:
        """After this share of the clip."""
        cell = CELLS.index(self.thing.cell)
        start = [cell % 3 * 0.32 + 0.18, cell // 3 * 0.32 + 0.18]
        centre = [_bounced(s + share * v) for s, v in zip(start, self.velocity, strict=True)]
        shift = (centre[0] - start[0], centre[1] - start[1])
        return Thing(self.thing.cell, self.thing.size, "plain", self.thing.colour, self.thing.shape, shift)


@dataclass(frozen=True)
class Clip:
    movers: tuple[Mover, ...]
    colour: str

    @property
    def caption(self) -> str:
        return f"{', '.join(mover.caption for mover in self.movers)} on {self.colour} background"


def _bounced(position: float) -> float:
    """Between NEAR and FAR."""
    width = FAR - NEAR
    inside = (position - NEAR) % (2 * width)
    return NEAR + (inside if inside <= width else 2 * width - inside)


def sample(random: np.random.Generator) -> Clip:
    """One or two things in different cells; a third stand still."""
    background = str(random.choice(list(COLOURS)))
    cells = sorted(random.choice(len(CELLS), 1 + int(random.integers(2)), replace=False))
    movers = []
    for cell in cells:
        colour = str(random.choice([c for c in COLOURS if c != background]))
        thing = Thing(CELLS[cell], str(random.choice(SIZES)), "plain", colour, str(random.choice(SHAPES)))
        motion, velocity = "still", (0.0, 0.0)
        if random.random() > 1 / 3:
            pace, way = str(random.choice(list(PACES))), str(random.choice(list(DIRECTIONS)))
            motion = f"{pace} {way}"
            velocity = (PACES[pace] * DIRECTIONS[way][0], PACES[pace] * DIRECTIONS[way][1])
        movers.append(Mover(thing, motion, velocity))
    return Clip(tuple(movers), background)


def clips(split: Split, seed: int) -> Iterator[Clip]:
    """An endless stream of clips whose captions belong to `split`."""
    random = np.random.default_rng(seed)
    while True:
        clip = sample(random)
        if split_of(clip.caption) == split:
            yield clip


def prompts(split: Split, n: int, seed: int = 0) -> list[str]:
    """`n` different captions of a split, always the same for the same seed."""
    captions: dict[str, None] = {}
    for clip in clips(split, seed):
        if len(captions) >= n:
            break
        captions[clip.caption] = None
    return list(captions)


def shown(drawn: Sequence[Clip]) -> Tensor:
    """The clips' frames, (B, 3, 16, 32, 32) in [0, 1]."""
    shares = np.linspace(0, 1, FRAMES)
    scenes = [
        Scene(tuple(mover.at(float(share)) for mover in clip.movers), Background("plain", clip.colour))
        for clip in drawn
        for share in shares
    ]
    return render(scenes).reshape(len(drawn), FRAMES, 3, SIDE, SIDE).transpose(1, 2).contiguous()


class FramesToDepth(ModelMixin, ConfigMixin):
    """(B, 3, T, H, W) in [-1, 1] to (B, 12, T, H/2, W/2) and back, exactly. Has the face of an `AutoencoderKLWan`."""

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        z_dim: int = 12,
        scale_factor_temporal: int = 1,
        scale_factor_spatial: int = 2,
        latents_mean: tuple[float, ...] = (0.0,) * 12,
        latents_std: tuple[float, ...] = (1.0,) * 12,
    ) -> None:
        super().__init__()
        self.register_buffer("device_of", torch.zeros(()))  # pipelines ask a module for its device and dtype

    def decode(self, z: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (F.pixel_shuffle(z.transpose(1, 2), 2).transpose(1, 2),)


def depth(frames: Tensor) -> Tensor:
    """Frames (B, 3, T, H, W) in [0, 1] as latents (B, 12, T, H/2, W/2)."""
    return F.pixel_unshuffle(frames.transpose(1, 2) * 2 - 1, 2).transpose(1, 2)


def transformer() -> WanTransformer3DModel:
    """Untrained: v (B, 12, 16, 16, 16) from a latent of that shape, a time and word features (B, 24, 96)."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=12,
        out_channels=12,
        text_dim=WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=6,
        rope_max_seq_len=32,
    )


def text_encoder() -> UMT5EncoderModel:
    """Untrained: ids (B, 24) to a feature per word, (B, 24, 96)."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(VOCABULARY),
            d_model=WIDTH,
            d_kv=24,
            d_ff=192,
            num_heads=4,
            num_layers=2,
            dropout_rate=0.0,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=32,
            pad_token_id=0,
            eos_token_id=1,
            is_encoder_decoder=False,
        )
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Words to ids, (B, 24). A word outside of WORDS is no token."""
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token=_PAD))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s,]+"), "removed")
    words.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, VOCABULARY[_END])])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=_PAD, eos_token=_END, model_max_length=LENGTH)


def scheduler(solver: Solver) -> Any:  # noqa: ANN401
    """Raises ValueError for another solver than SOLVERS."""
    if solver not in SOLVERS:
        raise ValueError(f"there is no solver {solver!r} here. Expected one of {', '.join(SOLVERS)}.")
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": SHIFT}
    return UniPCMultistepScheduler(**flow) if solver == "unipc" else DPMSolverMultistepScheduler(**flow)


def pipeline(*, solver: Solver = "euler") -> WanPipeline:
    """A stock pipeline that draws clips of captions, in float32 on the CPU: `pipe(caption, **CALL)`.

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
    return WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=modules["text"].eval(),
        vae=FramesToDepth(),
        transformer=modules["transformer"].eval(),
        scheduler=scheduler(solver),
    )


def draw(pipe: WanPipeline, captions: Sequence[str], steps: int, *, first: int = 0) -> Tensor:
    """Latents of the captions, (B, 12, 16, 16, 16); row i has seed first + i."""
    logger = logging.getLogger("diffusers.pipelines.wan.pipeline_wan")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it warns of every number of frames here
    try:
        latents: Tensor = pipe(
            list(captions),
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(first + i) for i in range(len(captions))],
            output_type="latent",
            **CALL,
        ).frames
    finally:
        logger.setLevel(before)
    return latents


def frames(latents: Tensor) -> Tensor:
    """Latents (B, 12, T, H, W) as frames (B, 3, T, 2 H, 2 W) in [0, 1]."""
    return F.pixel_shuffle(latents.transpose(1, 2), 2).transpose(1, 2).mul(0.5).add(0.5).clamp(0, 1)
