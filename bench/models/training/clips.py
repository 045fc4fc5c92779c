"""Trains the transformer and the text encoder of `clips`: flow prediction on captioned clips.

    python -m dicache.bench.models.training.clips build/clips --samples 60000
    python -m dicache.bench.models.training.clips build/clips --export

The first goes on where it was, `build/clips/clips.pt`, or from the weights that ship, or afresh; the second puts the
running average beside the model card. One caption in ten is left empty. Two batches in three see the first frames
alone, which costs a fifth.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from dicache.bench.models.clips import (
    FRAMES,
    LENGTH,
    MODEL,
    Clip,
    clips,
    depth,
    shown,
    text_encoder,
    tokenizer,
    transformer,
)
from dicache.bench.models.training.trainer import Trainer, averaged, train
from dicache.reference.weights import load, save

EMPTY, AT_ONCE = 0.1, 16
SHORT, SHARE_SHORT = 5, 2 / 3
CENTRE = 0.4
"""Of the logit-normal times (Esser et al. 2024, arXiv 2403.03206): more of the noisier ones, which decide motion."""


@torch.no_grad()
def initialise(model: WanTransformer3DModel) -> None:
    """What is predicted is nothing yet, and blocks add nothing."""
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    nn.init.zeros_(model.condition_embedder.time_proj.weight)
    nn.init.zeros_(model.condition_embedder.time_proj.bias)
    for name, parameter in model.named_parameters():
        if name.endswith("scale_shift_table"):
            nn.init.zeros_(parameter)
        elif name.endswith("attn2.to_out.0.weight"):
            nn.init.zeros_(parameter)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train clips; goes on where it stopped.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--export", action="store_true", help="ship what the checkpoint holds; trains nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "clips.pt"
    if args.export:
        save(MODEL, averaged(path, {"transformer": transformer(), "text": text_encoder()}))
        print(f"{MODEL.name}: {MODEL.stat().st_size / 1e6:.2f} MB")
        return
    torch.manual_seed(0)
    network = transformer()
    modules: dict[str, nn.Module] = {"transformer": network, "text": text_encoder()}
    if not path.exists() and MODEL.exists():
        load(MODEL, modules)
    elif not path.exists():
        initialise(network)
    tokens = tokenizer()
    streams: list[Iterator[Clip]] = []

    def loss(seen: int) -> Tensor:
        if not streams:
            streams.append(clips("train", seed=2 + seen))
        drawn = list(itertools.islice(streams[0], AT_ONCE))
        captions = ["" if torch.rand(()) < EMPTY else clip.caption for clip in drawn]
        ids = tokens(captions, padding="max_length", max_length=LENGTH, return_tensors="pt")
        count = SHORT if torch.rand(()) < SHARE_SHORT else FRAMES
        x0 = depth(shown(drawn)[:, :, :count])
        sigma = torch.sigmoid(CENTRE + torch.randn(len(x0)))
        eps, s = torch.randn_like(x0), sigma[:, None, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            words = modules["text"](**ids)[0] * ids.attention_mask[..., None]  # as the pipeline cuts them
            predicted = network((1 - s) * x0 + s * eps, 1000 * sigma, words, return_dict=False)[0]
        return F.mse_loss(predicted.float(), eps - x0)

    train(Trainer(modules, batch=AT_ONCE), loss, args.samples, path)


if __name__ == "__main__":
    main()
