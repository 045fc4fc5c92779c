"""What `emoji` scores: `python -m dicache.bench.models.training.emoji_card --packages FOLDER` (ten minutes).

A test caption's picture is looked for among the real ones of 64 test captions: how many of the others are nearer to
what was drawn than its own is, by the distance of pictures shrunk to 12 x 12. 0 finds it at once, half of them is
chance. The drawing of the same name in the other style, which a person made, is looked for likewise. The figures go to
`scores.json`, a grid to `pictures.png`, both beside the model card.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dicache.bench.models.emoji import SOLVERS, draw, pictures, pipeline
from dicache.bench.models.emoji_names import FOLDER, STYLES, names, split_of
from dicache.bench.models.training.cards import nearer, save_grid
from dicache.bench.models.training.emoji_pictures import Drawing, drawings, picture
from dicache.files.atomic import write_text

STEPS, AT_ONCE = 20, 50
SMALL = 12
SHOWN = ("red heart", "grinning face", "cat face", "rainbow", "pizza", "green apple", "star", "blue circle")
"""Asked for in no style, as nobody captioned anything."""
SCALE = 2


def real(drawing: Drawing) -> Tensor:
    """(3, 48, 48) in [0, 1]."""
    return torch.from_numpy(picture(drawing.svg).copy()) / 255


def shrunk(shown: Tensor) -> Tensor:
    """Pictures (B, 3, 48, 48) to (B, 3, 12, 12)."""
    return F.adaptive_avg_pool2d(shown, SMALL)


@torch.no_grad()
def drawn(captions: list[str], solver: str) -> Tensor:
    """(B, 3, 48, 48); caption i has seed i."""
    pipe = pipeline(solver=solver)  # type: ignore[arg-type]  # one of SOLVERS
    pipe.set_progress_bar_config(disable=True)
    firsts = range(0, len(captions), AT_ONCE)
    return torch.cat([pictures(draw(pipe, captions[i : i + AT_ONCE], STEPS, first=i)) for i in firsts])


def main() -> None:
    parser = argparse.ArgumentParser(description="Score emoji.")
    parser.add_argument("--packages", type=Path, default=Path(), help="where npm pack put the pictures")
    parser.add_argument("--captions", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    plain = {(d.style, d.name): d for d in drawings(args.packages) if not d.tone}
    both = [name for name, styles in sorted(names().items()) if set(styles) == set(STYLES)]
    asked = [(s, n) for n in both for s in STYLES if split_of(s, n) == "test" and (s, n) in plain]
    asked = [key for key in asked if (_other(key[0]), key[1]) in plain][: args.captions]
    captions, shown = [" ".join(key) for key in asked], torch.stack([real(plain[key]) for key in asked])
    twins = torch.stack([real(plain[_other(style), name]) for style, name in asked])
    results: dict[str, float] = {"captions": len(captions), "the other style's": nearer(shrunk(twins), shrunk(shown))}
    for solver in SOLVERS:
        seen = drawn(captions, solver)
        results[f"{solver}, {STEPS} steps"] = nearer(shrunk(seen), shrunk(shown))
        if solver == SOLVERS[0]:
            rows = [torch.stack((seen[i], shown[i])) for i in range(0, len(seen), max(1, len(seen) // 16))][:16]
    sheet = torch.cat([*rows, drawn(list(SHOWN), SOLVERS[0])])
    save_grid(_grid(sheet), SCALE, FOLDER / "pictures.png")
    write_text(FOLDER / "scores.json", json.dumps(results, indent=1) + "\n")
    print(results)


def _other(style: str) -> str:
    return STYLES[1 - STYLES.index(style)]  # type: ignore[arg-type]


def _grid(seen: Tensor, columns: int = 8) -> Tensor:
    """Pairs of what was drawn and the real one, then names in no style."""
    padded = F.pad(seen, (1, 1, 1, 1), value=0.8).unflatten(0, (-1, columns))
    return torch.cat([torch.cat(list(row), dim=2) for row in padded], dim=1)


if __name__ == "__main__":
    main()
