"""Trains the transformer and the text encoder of `emoji`: v prediction on pictures with their names.

    python -m dicache.bench.models.training.emoji build/emoji --packages FOLDER --samples 200000
    python -m dicache.bench.models.training.emoji build/emoji --export

The packages are those of `emoji_pictures`. The first goes on where it was, `build/emoji/emoji.pt`, or from the weights
that ship, or afresh; the second puts the running average beside the model card. One caption in ten is left empty.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from dicache.bench.models.emoji import MODEL, NOISE, text_encoder, transformer
from dicache.bench.models.emoji_names import LENGTH, tokenizer
from dicache.bench.models.training.emoji_pictures import Pictures, drawings, write_names
from dicache.bench.models.training.trainer import Trainer, averaged, train
from dicache.reference.weights import load, save

EMPTY = 0.1
AT_ONCE = 64
CENTRE, SPREAD, EVEN = 0.5, 1.6, 0.2
"""Times in half log SNR are normal, as most of a picture is decided around there, but for a share that is even."""


@torch.no_grad()
def initialise(model: PixArtTransformer2DModel) -> None:
    """Blocks add nothing yet: their gates are zero, as in a DiT, and so is what is predicted."""
    for name, parameter in model.named_parameters():
        if name.endswith("scale_shift_table") or name.startswith(("proj_out", "adaln_single.linear")):
            nn.init.zeros_(parameter)
        elif name.endswith("attn2.to_out.0.weight"):
            nn.init.zeros_(parameter)  # what is read from the words has no gate


class Noise:
    """`sample` gives times (n,), and latents under noise with their v."""

    def __init__(self) -> None:
        self.square: Tensor = DDIMScheduler(**NOISE).alphas_cumprod
        self.level: Tensor = 0.5 * torch.log(self.square / (1 - self.square))

    def times(self, count: int) -> Tensor:
        wanted = CENTRE + SPREAD * torch.randn(count)
        near = torch.searchsorted(-self.level, -wanted).clamp(max=len(self.level) - 1)
        return torch.where(torch.rand(count) < EVEN, torch.randint(0, len(self.level), (count,)), near)

    def sample(self, shown: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t and v (B, 12, 24, 24), t (B,), of pictures (B, 3, 48, 48) in [0, 1]."""
        x0 = F.pixel_unshuffle(shown * 2 - 1, 2)
        t, eps = self.times(len(x0)), torch.randn_like(x0)
        square = self.square[t][:, None, None, None]
        a, s = square.sqrt(), (1 - square).sqrt()
        return a * x0 + s * eps, a * eps - s * x0, t


def main() -> None:
    parser = argparse.ArgumentParser(description="Train emoji; goes on where it stopped.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packages", type=Path, default=Path(), help="where npm pack put the pictures")
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--export", action="store_true", help="ship what the checkpoint holds; trains nothing")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "emoji.pt"
    if args.export:
        save(MODEL, averaged(path, {"transformer": transformer(), "text": text_encoder()}))
        print(f"{MODEL.name}: {MODEL.stat().st_size / 1e6:.2f} MB")
        return
    drawn = drawings(args.packages)
    write_names(drawn)
    torch.manual_seed(0)
    network = transformer()
    modules: dict[str, nn.Module] = {"transformer": network, "text": text_encoder()}
    if not path.exists() and MODEL.exists():
        load(MODEL, modules)
    elif not path.exists():
        initialise(network)
    network.set_attn_processor(AttnProcessor())  # the fused one's way back is slow in bfloat16
    pictures, noise, tokens = Pictures(drawn, "train"), Noise(), tokenizer()
    print(f"{len(pictures.captions)} pictures", flush=True)

    def loss(seen: int) -> Tensor:
        shown, captions = pictures.sample(AT_ONCE)
        captions = ["" if torch.rand(()) < EMPTY else text for text in captions]
        ids = tokens(captions, padding="max_length", max_length=LENGTH, return_tensors="pt")
        xt, v, t = noise.sample(shown)
        with torch.autocast("cpu", torch.bfloat16):
            words = modules["text"](**ids)[0]
            options = {"encoder_attention_mask": ids.attention_mask, "return_dict": False}
            predicted = modules["transformer"](xt, words, t, **options)[0]
        return F.mse_loss(predicted.float(), v)

    train(Trainer(modules, batch=AT_ONCE), loss, args.samples, path)


if __name__ == "__main__":
    main()
