"""What `clips` scores: `python -m dicache.bench.models.training.clips_card` (ten minutes on one core).

Test captions with one thing, against the real clips of the same captions: how many of the others' real clips are nearer
to what was drawn than its own is, by the distance of frames shrunk to 8 x 8 (half of them is chance); how much of the
way that was asked for the thing goes; and how much changes from frame to frame, for captions that ask for something
still, slow and quick. The figures go to `scores.json`, a grid to `pictures.png`, both beside the model card.
"""

import argparse
import itertools
import json
from collections import defaultdict
from statistics import fmean, median

import torch
import torch.nn.functional as F
from torch import Tensor

from dicache.bench.models.clips import FOLDER, Clip, clips, draw, frames, pipeline, shown
from dicache.bench.models.training.cards import nearer, save_grid
from dicache.files.atomic import write_text

STEPS, AT_ONCE, SMALL = 30, 4, 8
FRAMES_SHOWN = (0, 5, 10, 15)
ROWS, SCALE = 8, 3


def shrunk(shown: Tensor) -> Tensor:
    """Clips (B, 3, F, H, W) to (B, 3, F, 8, 8)."""
    return F.adaptive_avg_pool3d(shown, (None, SMALL, SMALL))


def change(clip: Tensor) -> float:
    """Mean absolute difference of neighbouring frames of a clip (3, F, H, W)."""
    return clip.diff(dim=1).abs().mean().item()


def centres(clip: Tensor) -> Tensor:
    """Where the thing is, (F, 2) as x and y in shares of the side: the centre of what differs from the corners."""
    corners = clip[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].median(-1).values
    weight = ((clip - corners[:, :, None, None]).abs().sum(0) - 0.3).clamp(min=0)
    at = torch.linspace(0, 1, clip.shape[-1])
    total = weight.sum((1, 2)).clamp(min=1e-3)
    return torch.stack([(weight.sum(1) * at).sum(1) / total, (weight.sum(2) * at).sum(1) / total], dim=1)


def moved(clip: Tensor, asked: Clip) -> float:
    """How much of the way that was asked for the thing goes in the first third of the clip, along it: 1 for all."""
    path = centres(clip)
    third = len(path) // 3
    way = torch.tensor(asked.movers[0].at(third / (len(path) - 1)).jitter, dtype=torch.float32)
    return float((path[third] - path[0]) @ way / (way @ way))


def figures(drawn: Tensor, asked: list[Clip]) -> dict[str, float]:
    changes, ways = defaultdict(list), defaultdict(list)
    for clip, wanted in zip(drawn, asked, strict=True):
        pace = wanted.movers[0].motion.split()[0]
        changes[pace].append(change(clip))
        if pace != "still":
            ways[pace].append(moved(clip, wanted))
    result = {f"change from frame to frame, {pace}": fmean(values) for pace, values in sorted(changes.items())}
    return result | {f"share of the way, {pace}, median": median(values) for pace, values in sorted(ways.items())}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Score clips.")
    parser.add_argument("--captions", type=int, default=48)
    args = parser.parse_args()
    torch.set_num_threads(1)
    single = (clip for clip in clips("test", seed=3) if len(clip.movers) == 1)
    asked = list(itertools.islice(single, args.captions))
    real = shown(asked)
    pipe = pipeline()
    pipe.set_progress_bar_config(disable=True)
    firsts = range(0, len(asked), AT_ONCE)
    drawn = torch.cat([frames(draw(pipe, [c.caption for c in asked[i : i + AT_ONCE]], STEPS, first=i)) for i in firsts])
    results = {
        "captions": len(asked),
        "nearer than its own": nearer(shrunk(drawn), shrunk(real)),
        "drawn": figures(drawn, asked),
        "real": figures(real, asked),
    }
    rows = [torch.cat([each[i][:, f] for each in (drawn, real) for f in FRAMES_SHOWN], dim=2) for i in range(ROWS)]
    save_grid(torch.cat(rows, dim=1), SCALE, FOLDER / "pictures.png")
    write_text(FOLDER / "scores.json", json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
