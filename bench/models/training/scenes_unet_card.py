"""What `scenes-unet` scores: `python -m dicache.bench.models.training.scenes_unet_card` (ten minutes on one core).

The attribute reader on test captions under every solver, against drawn scenes; whether the ControlNet obeys; and a grid
of pictures. The figures go to `scores.json`, the grid to `pictures.png`, both beside the model card.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from dicache.bench.models.scenes_unet import FOLDER, SOLVERS, Solver, draw, edges, pictures, pipeline
from dicache.bench.models.training.cards import save_grid
from dicache.files.atomic import write_text
from dicache.reference.reader import NOTHING, THING, Reader, targets
from dicache.reference.render import render
from dicache.reference.scenes import Scene, caption, scenes

STEPS: dict[Solver, int] = {"ddim": 50, "pndm": 50, "dpm++": 20, "euler a": 50}
AT_ONCE = 50
SCALE = 3
"""Of a picture's pixels in the grid."""


def quiet(*, control: bool = False, solver: Solver = "ddim") -> StableDiffusionPipeline:
    pipe = pipeline(control=control, solver=solver)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, captions: Sequence[str], steps: int, image: Tensor | None = None) -> Tensor:  # noqa: ANN401
    """Pictures (B, 3, 32, 32) of captions in batches; caption i has seed i."""
    parts = []
    for first in range(0, len(captions), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        shown = None if image is None else image[rows]
        parts.append(pictures(draw(pipe, captions[rows], steps, first=first, image=shown)))
    return torch.cat(parts)


def layout_share(reader: Reader, seen: Tensor, drawn_scenes: Sequence[Scene]) -> dict[str, float]:
    """How often the reader sees in a cell what the scene has there: in all cells the shape or nothing, and in cells
    with a thing its shape.
    """
    cells, _ = reader(seen)
    wanted, read = targets(drawn_scenes)[0]["shape"], cells["shape"].argmax(-1)
    things = wanted != THING["shape"].index(NOTHING)
    return {
        "cells": (read == wanted).float().mean().item(),
        "shapes": (read == wanted)[things].float().mean().item(),
    }


def edge_f1(seen: Tensor, image: Tensor) -> float:
    """Of pixels that are an edge in a picture and in its condition, mean over pictures."""
    here, there = (edges(seen) > 0.5).flatten(1).float(), (image > 0.5).flatten(1).float()
    both = (here * there).sum(1)
    return (2 * both / (here.sum(1) + there.sum(1)).clamp(min=1)).mean().item()


@torch.no_grad()
def obedience(reader: Reader, count: int, steps: int) -> dict[str, Any]:
    """Test scenes drawn from their captions, from nothing, and from captions of other scenes: with control and
    without.
    """
    shown = list(itertools.islice(scenes("test", seed=7), count))
    image = edges(render(shown))
    own = [caption(scene) for scene in shown]
    captions = {"own caption": own, "no caption": [""] * count, "another's caption": own[1:] + own[:1]}
    results: dict[str, Any] = {"ceiling": {"edges": 1.0, **layout_share(reader, render(shown), shown)}}
    for control, name in itertools.product((False, True), captions):
        seen = drawn(quiet(control=control), captions[name], steps, image if control else None)
        line = {"edges": edge_f1(seen, image), **layout_share(reader, seen, shown)}
        results[f"{name}, {'with' if control else 'without'} control"] = line
        print(name, control, line, flush=True)
    return results


@torch.no_grad()
def scores(reader: Reader, count: int) -> dict[str, Any]:
    shown = list(itertools.islice(scenes("test", seed=0), count))
    captions = [caption(scene) for scene in shown]
    results: dict[str, Any] = {"drawn scenes": reader.score(render(shown), captions).mean().item()}
    for solver in SOLVERS:
        steps, few = STEPS[solver], captions if solver == "ddim" else captions[: count // 2]
        seen = drawn(quiet(solver=solver), few, steps)
        results[f"{solver}, {steps} steps, {len(few)} captions"] = reader.score(seen, few).mean().item()
        print(solver, results, flush=True)
    return results


@torch.no_grad()
def grid(rows: int = 6) -> Tensor:
    """Eight columns: real scene, the four solvers, edges, and what is drawn with them, with the caption and without."""
    shown = list(itertools.islice(scenes("test", seed=5), rows))
    captions, real = [caption(scene) for scene in shown], render(shown)
    image = edges(real)
    columns = [real, *(drawn(quiet(solver=solver), captions, STEPS[solver]) for solver in SOLVERS)]
    columns += [image, drawn(quiet(control=True), captions, STEPS["ddim"], image)]
    columns += [drawn(quiet(control=True), [""] * rows, STEPS["ddim"], image)]
    wide = torch.cat([torch.nn.functional.pad(column, (1, 1, 1, 1), value=1.0) for column in columns], dim=3)
    return torch.cat(list(wide), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score scenes-unet.")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--controls", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    save_grid(grid(), SCALE, FOLDER / "pictures.png")
    reader = Reader.shipped()
    results = {"reader": scores(reader, args.captions), "control": obedience(reader, args.controls, 20)}
    write_text(FOLDER / "scores.json", json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
