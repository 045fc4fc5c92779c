"""Trains the UNet and the text encoder of `scenes-unet`: eps prediction on captioned scenes.

    python -m dicache.bench.models.training.scenes_unet build/scenes-unet --samples 200000
    python -m dicache.bench.models.training.scenes_unet build/scenes-unet --export

The first goes on where it was, `build/scenes-unet/unet.pt`, or from the weights that ship, or afresh; the second puts
the running average beside the model card. The text encoder can read before the UNet has to look; one caption in ten is
left empty, for guidance.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from dicache.bench.models.scenes_unet import MODEL, text_encoder, unet
from dicache.bench.models.training.trainer import Trainer, averaged, loss_of, noised, of_scenes, train
from dicache.reference.render import render
from dicache.reference.scenes import Scene, caption
from dicache.reference.text import sentence_encoder, tokenizer
from dicache.reference.training.reading import teach
from dicache.reference.weights import load, save

EMPTY = 0.1
TOKENIZER = tokenizer()


@torch.no_grad()
def initialise(model: UNet2DConditionModel) -> None:
    """The UNet starts by giving back its input over its deviation, which is the answer at much noise: blocks add
    nothing, every latent channel is two of opposite sign, since silu(x) - silu(-x) = x.
    """
    for name, module in model.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    latents, width = model.config.in_channels, model.config.block_out_channels[0]
    signs = torch.zeros(2 * latents, latents)
    signs[::2], signs[1::2] = torch.eye(latents), -torch.eye(latents)
    rows = slice(2 * latents)
    shortcut = model.up_blocks[-1].resnets[-1].conv_shortcut
    for layer in (model.conv_in, shortcut):
        layer.weight[rows], layer.bias[rows] = 0, 0
    model.conv_in.weight[rows, :, 1, 1] = signs
    shortcut.weight[rows, width : width + 2 * latents, 0, 0] = torch.eye(2 * latents)
    model.conv_out.weight[:, rows, 1, 1] = signs.T


def token_ids(drawn: Sequence[Scene], empty: float) -> Tensor:
    """Of the captions, (B, 28), of which a share of `empty` says nothing."""
    captions = ["" if torch.rand(()) < empty else caption(scene) for scene in drawn]
    ids: Tensor = TOKENIZER(captions, padding="max_length", return_tensors="pt").input_ids
    return ids


def main() -> None:
    parser = argparse.ArgumentParser(description="Train scenes-unet; goes on where it stopped.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--export", action="store_true", help="ship what the checkpoint holds; trains nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "unet.pt"
    modules: dict[str, nn.Module] = {"unet": unet(), "text": text_encoder()}
    if args.export:
        save(MODEL, averaged(path, modules))
        print(f"{MODEL.name}: {MODEL.stat().st_size / 1e6:.2f} MB")
        return
    torch.manual_seed(0)
    if not path.exists() and MODEL.exists():
        load(MODEL, modules)
    elif not path.exists():
        initialise(modules["unet"])
        rates = teach(modules["text"], sentence_encoder(), TOKENIZER, steps=160)
        print(f"reading: {rates[0]:.3f} of what the words say", flush=True)
    modules["unet"].to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(drawn: Sequence[Scene]) -> Tensor:
        xt, eps, t, weight = noised(render(drawn))
        words = modules["text"](token_ids(drawn, EMPTY))[0]
        predicted = modules["unet"](xt, t, words, return_dict=False)[0]
        return loss_of(predicted - eps, weight)

    train(Trainer(modules), of_scenes(loss), args.samples, path)


if __name__ == "__main__":
    main()
