"""Trains the attribute reader on drawn scenes with a little noise and blur: `python -m
dicache.reference.training.reader` (minutes on a CPU).
"""

import argparse
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dicache.reference.reader import Reader, targets
from dicache.reference.render import render
from dicache.reference.scenes import caption, scenes
from dicache.reference.weights import READER, save


def train(steps: int, batch: int = 128) -> Reader:
    torch.manual_seed(0)
    reader, stream = Reader(), scenes("train", seed=3)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in (bar := tqdm(range(steps), desc="reader", mininterval=5)):
        drawn = list(itertools.islice(stream, batch))
        cells, back = reader(_spoiled(render(drawn)))
        true_cells, true_back = targets(drawn)
        loss = torch.stack(
            [F.cross_entropy(logits.flatten(0, -2), true_cells[name].flatten()) for name, logits in cells.items()]
        ).sum()
        loss = loss + torch.stack([F.cross_entropy(logits, true_back[name]) for name, logits in back.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return reader.eval()


def _spoiled(pictures: Tensor) -> Tensor:
    """Noise of up to 4 %, and a slight blur for every other picture."""
    noise = torch.randn_like(pictures) * 0.04 * torch.rand(len(pictures), 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    weight = 0.5 * torch.rand(len(pictures), 1, 1, 1) * (torch.rand(len(pictures), 1, 1, 1) < 0.5)
    return torch.lerp(pictures, blurred, weight) + noise


def ceiling(reader: Reader, n: int = 2000) -> float:
    """The score of drawn test scenes: what a perfect model would get."""
    drawn = list(itertools.islice(scenes("test", seed=4), n))
    return reader.score(render(drawn), [caption(s) for s in drawn]).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the attribute reader.")
    parser.add_argument("--steps", type=int, default=3000)
    reader = train(parser.parse_args().steps)
    save(READER, {"reader": reader})
    print(f"drawn test scenes score {ceiling(Reader.shipped()):.4f}")


if __name__ == "__main__":
    main()
