"""Trains the ControlNet of `scenes-unet` from the UNet's first half, or from what ships, with the rest as it ships.

    python -m dicache.bench.models.training.scenes_unet_control build/scenes-unet --samples 25000
    python -m dicache.bench.models.training.scenes_unet_control build/scenes-unet --export

Half of the captions are left empty (Zhang et al. 2023, arXiv 2302.05543): then edges alone say where things are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dicache.bench.models.scenes_unet import CONTROL, MODEL, controlnet, edges, text_encoder, unet
from dicache.bench.models.training.scenes_unet import token_ids
from dicache.bench.models.training.trainer import Trainer, averaged, loss_of, noised, of_scenes, train
from dicache.reference.render import render
from dicache.reference.scenes import Scene
from dicache.reference.weights import load, save

EMPTY = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the ControlNet of scenes-unet; goes on where it stopped.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=25_000)
    parser.add_argument("--export", action="store_true", help="ship what the checkpoint holds; trains nothing")
    args = parser.parse_args()
    path = args.folder / "control.pt"
    frozen: dict[str, nn.Module] = {"unet": unet(), "text": text_encoder()}
    load(MODEL, frozen)
    torch.manual_seed(1)
    network = controlnet(frozen["unet"])
    if args.export:
        save(CONTROL, averaged(path, {"controlnet": network}))
        print(f"{CONTROL.name}: {CONTROL.stat().st_size / 1e6:.2f} MB")
        return
    if CONTROL.exists():
        load(CONTROL, {"controlnet": network})
    for module in frozen.values():
        module.requires_grad_(False)
    for module in (frozen["unet"], network):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(drawn: Sequence[Scene]) -> Tensor:
        pictures = render(drawn)
        xt, eps, t, weight = noised(pictures)
        words = frozen["text"](token_ids(drawn, EMPTY))[0]
        down, middle = network(xt, t, words, edges(pictures), return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        predicted = frozen["unet"](xt, t, words, **residuals, return_dict=False)[0]
        return loss_of(predicted - eps, weight)

    train(Trainer({"controlnet": network}), of_scenes(loss), args.samples, path)


if __name__ == "__main__":
    main()
