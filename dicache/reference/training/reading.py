"""Teaches the two text encoders to parse before the denoiser has to look: a minute of supervision that saves hours of
diffusion training.

At the token of each shape the word encoder must know the whole thing (cell, size, fill, colour), at the token
"background" the whole background; the sentence vector must know the background and what stands in each cell. Linear
read-outs, cross entropy; the read-outs are thrown away. Left to the diffusion loss alone, the encoders bind colours to
the wrong things for most of a training.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, T5EncoderModel

from dicache.reference.scenes import CELLS, COLOURS, FILLS, PATTERNS, SHAPES, SIZES, Scene, caption, scenes
from dicache.reference.text import VOCABULARY, CaptionTokenizer

_COLOURS = tuple(COLOURS)
_THING = {"cell": CELLS, "size": SIZES, "fill": FILLS, "colour": _COLOURS}
_BACKGROUND = {"pattern": PATTERNS, "colour": _COLOURS}
_NONE = -100


def teach(
    words: T5EncoderModel, sentence: CLIPTextModel, tokenizer: CaptionTokenizer, *, steps: int = 600, batch: int = 128
) -> tuple[float, float]:
    """Train both encoders in place; the last exact-match rates of word and sentence read-outs."""
    torch.manual_seed(0)
    word_heads, back_heads = _heads(96, _THING), _heads(96, _BACKGROUND)
    sentence_heads = _heads(64, _BACKGROUND | dict.fromkeys(CELLS, ("nothing", *_COLOURS)))
    modules = nn.ModuleList([words, sentence, word_heads, back_heads, sentence_heads])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    stream = scenes("train", seed=1)
    right: list[tuple[float, float]] = []
    for _ in (bar := tqdm(range(steps), desc="reading", mininterval=10)):
        drawn = list(itertools.islice(stream, batch))
        ids = tokenizer([caption(s) for s in drawn], padding="max_length", return_tensors="pt").input_ids
        read, pooled = words(ids)[0], sentence(ids).pooler_output
        shapes = torch.isin(ids, torch.tensor([VOCABULARY[s] for s in SHAPES]))
        word_loss, word_right = _score(word_heads, read[shapes], _thing_targets(drawn))
        back_loss, _ = _score(back_heads, read[ids == VOCABULARY["background"]], _background_targets(drawn))
        sentence_loss, sentence_right = _score(
            sentence_heads, pooled, _background_targets(drawn) | _cell_targets(drawn)
        )
        loss = word_loss + back_loss + sentence_loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right.append((word_right, sentence_right))
        bar.set_postfix(words=f"{word_right:.3f}", sentence=f"{sentence_right:.3f}", refresh=False)
    return right[-1]


def _heads(width: int, targets: dict[str, tuple[str, ...]]) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in targets.items()})


def _score(heads: nn.ModuleDict, features: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, float]:
    logits = {name: head(features) for name, head in heads.items()}
    loss = torch.stack([F.cross_entropy(logits[name], targets[name], ignore_index=_NONE) for name in heads]).sum()
    right = torch.stack([(logits[name].argmax(-1) == targets[name]).float().mean() for name in heads]).mean()
    return loss, right.item()


def _thing_targets(drawn: list[Scene]) -> dict[str, Tensor]:
    things = [thing for scene in drawn for thing in scene.things]
    return {name: torch.tensor([values.index(t.attributes[name]) for t in things]) for name, values in _THING.items()}


def _background_targets(drawn: list[Scene]) -> dict[str, Tensor]:
    return {
        name: torch.tensor([values.index(s.background.attributes[name] or "") for s in drawn])
        for name, values in _BACKGROUND.items()
    }


def _cell_targets(drawn: list[Scene]) -> dict[str, Tensor]:
    shown = [{thing.cell: 1 + _COLOURS.index(thing.colour) for thing in scene.things} for scene in drawn]
    return {cell: torch.tensor([row.get(cell, 0) for row in shown]) for cell in CELLS}
