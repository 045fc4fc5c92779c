"""Reads a picture back: how many of its caption's attributes does it show? The project's own CLIPScore.

A small classifier looks at every cell (nothing or a shape, its size, fill and colour) and at the background (pattern,
colours). An attribute the caption names scores 1 if the classifier sees it: for each thing shape, size, fill and
colour, for the background pattern and colours. Trained on drawn scenes only, so it is as strict with a model's blobs as
with anything it never saw.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicache.reference.render import SIDE
from dicache.reference.scenes import CELLS, COLOURS, FILLS, PATTERNS, SHAPES, SIZES, Scene, parse
from dicache.reference.weights import READER, load

NOTHING = "nothing"
THING = {"shape": (NOTHING, *SHAPES), "size": SIZES, "fill": FILLS, "colour": tuple(COLOURS)}
BACKGROUND = {"pattern": PATTERNS, "colour": tuple(COLOURS), "second": (NOTHING, *COLOURS)}
_WINDOW = 12


class Reader(nn.Module):
    """Logits per attribute: for the cells (B, 9, values), for the background (B, values)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell: nn.Sequential = nn.Sequential(
            *(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(
                nn.Conv2d(32, 64, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(64 * 9, 128),
                nn.ReLU(),
            ),
        )
        self.whole: nn.Sequential = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(3 * (SIDE // 2) ** 2, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
        )
        self.cell_heads: nn.ModuleDict = nn.ModuleDict(
            {name: nn.Linear(128, len(values)) for name, values in THING.items()}
        )
        self.back_heads: nn.ModuleDict = nn.ModuleDict(
            {name: nn.Linear(128, len(values)) for name, values in BACKGROUND.items()}
        )

    @classmethod
    def shipped(cls) -> "Reader":
        """The trained reader. Raises ReferenceModelError if its weights are missing or damaged."""
        reader = cls()
        load(READER, {"reader": reader})
        return reader.eval()

    def forward(self, pictures: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        pictures = pictures * 2 - 1
        cells = self.cell(_windows(pictures)).unflatten(0, (len(pictures), len(CELLS)))
        features = self.whole(pictures)
        return {n: head(cells) for n, head in self.cell_heads.items()}, {
            n: head(features) for n, head in self.back_heads.items()
        }

    @torch.no_grad()
    def score(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """Share of each caption's attributes that its picture shows, (B, 3, 32, 32) in [0, 1] -> (B,)."""
        cells, back = self(pictures)
        seen_cells = {name: logits.argmax(-1) for name, logits in cells.items()}
        seen_back = {name: logits.argmax(-1) for name, logits in back.items()}
        return torch.tensor([_share(parse(caption), i, seen_cells, seen_back) for i, caption in enumerate(captions)])


def _share(scene: Scene, i: int, cells: dict[str, Tensor], back: dict[str, Tensor]) -> float:
    right = [
        values[cells[name][i, CELLS.index(thing.cell)]] == thing.attributes[name]
        for thing in scene.things
        for name, values in THING.items()
    ]
    named = ("pattern", "colour", "second") if scene.background.second else ("pattern", "colour")
    right += [BACKGROUND[name][back[name][i]] == scene.background.attributes[name] for name in named]
    return sum(right) / len(right)


def _windows(pictures: Tensor) -> Tensor:
    """A window around every cell's centre, (B, 3, 32, 32) -> (B * 9, 3, 12, 12)."""
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    starts = [round((0.18 + 0.32 * k) * SIDE) - _WINDOW // 2 + 1 for k in range(3)]
    windows = [padded[..., y : y + _WINDOW, x : x + _WINDOW] for y in starts for x in starts]
    return torch.stack(windows, dim=1).flatten(0, 1)


def targets(scenes: Sequence[Scene]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the reader should say: for the cells (B, 9), -100 where a cell without a thing has no such attribute, and
    for the background (B,).
    """
    at = [{t.cell: t for t in scene.things} for scene in scenes]
    cells = {
        name: torch.tensor(
            [
                [
                    values.index(row[c].attributes[name]) if c in row else 0 if values[0] == NOTHING else -100
                    for c in CELLS
                ]
                for row in at
            ]
        )
        for name, values in THING.items()
    }
    back = {
        name: torch.tensor([values.index(s.background.attributes[name] or NOTHING) for s in scenes])
        for name, values in BACKGROUND.items()
    }
    return cells, back
