"""Draws scenes: signed distances, one pixel of anti-aliasing, no randomness but the scene's own jitter.

A shape is a signed distance d(x, y; r), negative inside, in units of the picture's side. Its coverage of a pixel is
clamp(1/2 - d * SIDE, 0, 1). Coordinates: x to the right, y down, (0, 0) the top left corner; patterns are clamped sine
waves.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dicache.reference.scenes import CELLS, COLOURS, Scene, Thing

SIDE = 32
RADIUS = {"small": 0.095, "large": 0.145}
_ON_LIGHT = {"white", "yellow", "pink", "cyan"}


def render(scenes: Sequence[Scene]) -> Tensor:
    """Pictures of the scenes, (B, 3, 32, 32) in [0, 1]."""
    y, x = torch.meshgrid((torch.arange(SIDE) + 0.5) / SIDE, (torch.arange(SIDE) + 0.5) / SIDE, indexing="ij")
    image = _backgrounds(scenes, x, y)
    for slot in range(max((len(scene.things) for scene in scenes), default=0)):
        for shape, distance in DISTANCES.items():
            rows = [i for i, s in enumerate(scenes) if len(s.things) > slot and s.things[slot].shape == shape]
            if rows:
                image[rows] = _over(image[rows], [scenes[i].things[slot] for i in rows], distance, x, y)
    return image.permute(0, 3, 1, 2).contiguous()


def _backgrounds(scenes: Sequence[Scene], x: Tensor, y: Tensor) -> Tensor:
    """(B, H, W, 3)."""
    first = _colours([s.background.colour for s in scenes])
    shade = torch.where(first.mean(-1, keepdim=True) > 0.3, first * 0.62, first * 0.62 + 0.3)
    second = _colours([s.background.second or s.background.colour for s in scenes])
    second = torch.where(_column([s.background.second is not None for s in scenes]) > 0, second, shade)
    masks = {
        "plain": torch.zeros_like(x),
        "striped": _wave(torch.sin(2 * math.pi * 4 * x), 6),
        "checkered": _wave(torch.sin(2 * math.pi * 2.5 * x) * torch.sin(2 * math.pi * 2.5 * y), 10),
        "gradient": y,
    }
    return torch.lerp(first, second, torch.stack([masks[s.background.pattern] for s in scenes])[..., None])


def _over(
    image: Tensor, things: list[Thing], distance: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> Tensor:
    """Draw one thing over each row of `image` (B, H, W, 3); all things have the shape of `distance`."""
    cells = [CELLS.index(t.cell) for t in things]
    x = x - _column([c % 3 * 0.32 + 0.18 + t.jitter[0] for c, t in zip(cells, things, strict=True)])[..., 0]
    y = y - _column([c // 3 * 0.32 + 0.18 + t.jitter[1] for c, t in zip(cells, things, strict=True)])[..., 0]
    cover = (0.5 - distance(x, y, _column([RADIUS[t.size] for t in things])[..., 0]) * SIDE).clamp(0, 1)
    masks = {
        "plain": torch.zeros_like(x),
        "striped": _wave(torch.sin(2 * math.pi * 9 * (x + y)), 2.5),
        "checkered": _wave(torch.sin(2 * math.pi * 6.5 * x) * torch.sin(2 * math.pi * 6.5 * y), 6),
    }
    mask = torch.stack([masks[t.fill][i] for i, t in enumerate(things)])
    contrast = _colours(["black" if t.colour in _ON_LIGHT else "white" for t in things])
    return torch.lerp(
        image, torch.lerp(_colours([t.colour for t in things]), contrast, mask[..., None]), cover[..., None]
    )


def _wave(wave: Tensor, gain: float) -> Tensor:
    return (wave * gain).clamp(-0.5, 0.5) + 0.5


def _colours(names: list[str]) -> Tensor:
    return torch.tensor([COLOURS[name] for name in names])[:, None, None]


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None]


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.hypot(x, y) - r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.86 * r


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    y = y - 0.12 * r
    return torch.maximum(x.abs() * math.sqrt(3) / 2 - (y + 0.95 * r) / 2, y - 0.75 * r)


def _ring(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74 * r).abs() - 0.24 * r


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    a, b, t = x.abs(), y.abs(), 0.33 * r
    return torch.minimum(torch.maximum(a - t, b - r), torch.maximum(b - t, a - r))


def _star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Five points: fold the plane into one half-point, then the distance to the line from tip to inner corner."""
    half = math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + half, 2 * half) - half
    u, v = torch.hypot(x, y) * angle.cos(), torch.hypot(x, y) * angle.sin().abs()
    corner_u, corner_v = 0.45 * r * math.cos(half), 0.45 * r * math.sin(half)
    return ((u - r) * corner_v - v * (corner_u - r)) / torch.hypot(corner_u - r, corner_v)


DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
    "star": _star,
}
