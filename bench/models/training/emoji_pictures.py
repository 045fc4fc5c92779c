"""The pictures that `emoji` is trained on, from two packages of drawings that anybody may use:

    npm pack @iconify-json/noto@1.2.9                # Noto Emoji, Google, Apache-2.0
    npm pack @iconify-json/fluent-emoji-flat@1.2.6   # Fluent Emoji, Microsoft, MIT
    pip install --no-deps resvg-py==0.5.0

Names are told apart from skin tones, which the two packages write differently: noto waving-hand-medium-dark-skin-tone,
flat waving-hand-medium-dark.
"""

import io
import json
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dicache.bench.models.emoji import SIDE
from dicache.bench.models.emoji_names import NAMES, STYLES, Split, split_of
from dicache.files.atomic import write_text

PACKAGES = {"noto": "iconify-json-noto-*.tgz", "flat": "iconify-json-fluent-emoji-flat-*.tgz"}
TONE = re.compile(r"(-(medium-)?(light|dark|medium))$")


@dataclass(frozen=True)
class Drawing:
    style: str
    name: str
    """Words."""
    tone: str
    """Words, or nothing."""
    svg: str

    @property
    def caption(self) -> str:
        return " ".join(filter(None, (self.style, self.name, self.tone)))


def drawings(folder: Path) -> list[Drawing]:
    """Of both packages in the folder. Raises FileNotFoundError where one is missing."""
    drawn = []
    for style, pattern in PACKAGES.items():
        paths = sorted(folder.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"there is no {pattern} in {folder}. Expected it from npm pack: {__doc__}")
        with tarfile.open(paths[-1]) as package:
            member = package.extractfile("package/icons.json")
            assert member is not None
            icons = json.load(member)
        for key, icon in icons["icons"].items():
            if icon.get("hidden"):
                continue
            width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
            name, tone = name_and_tone(key, icons["icons"])
            drawn.append(Drawing(style, name.replace("-", " "), tone.replace("-", " "), svg))
    return drawn


def name_and_tone(key: str, keys: dict[str, object]) -> tuple[str, str]:
    """Of a key, with hyphens; a tone only where the key says it, or the same without it is a key."""
    plain, tones = key.replace("-skin-tone", ""), ""
    while match := TONE.search(plain):
        shorter = plain[: match.start()]
        if plain == key and shorter not in keys:
            break
        plain, tones = shorter, match.group(1)[1:] + ("-" + tones if tones else "")
    return plain, tones


def write_names(drawn: list[Drawing]) -> None:
    styles: dict[str, set[str]] = {}
    for drawing in drawn:
        styles.setdefault(drawing.name, set()).add(drawing.style)
    lines = [f"{name}\t{' '.join(s for s in STYLES if s in styles[name])}" for name in sorted(styles)]
    write_text(NAMES, "\n".join(lines) + "\n")


def picture(svg: str) -> np.ndarray:
    """(3, 48, 48) uint8, on white."""
    from resvg_py import svg_to_bytes  # for training only

    png = svg_to_bytes(svg_string=svg, width=4 * SIDE, height=4 * SIDE, background="white")
    image = Image.open(io.BytesIO(bytes(png))).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)


class Pictures:
    """Those of a split: `captions`, `shown` (N, 3, 48, 48) uint8, and how often each is drawn: a name as often as
    another, half of the time without a tone.
    """

    def __init__(self, drawn: list[Drawing], split: Split) -> None:
        own = [d for d in drawn if split_of(d.style, d.name) == split]
        self.captions: list[str] = [d.caption for d in own]
        self.names: list[str] = [f"{d.style} {d.name}" for d in own]
        self.shown: Tensor = torch.from_numpy(np.stack([picture(d.svg) for d in own]))
        toned = Counter(name for name, d in zip(self.names, own, strict=True) if d.tone)
        self.weights: Tensor = torch.tensor(
            [0.5 / toned[n] if d.tone else 1.0 for n, d in zip(self.names, own, strict=True)]
        )

    def sample(self, count: int) -> tuple[Tensor, list[str]]:
        """Pictures (count, 3, 48, 48) in [0, 1] and their captions."""
        rows = torch.multinomial(self.weights, count, replacement=True)
        return self.shown[rows] / 255, [self.captions[i] for i in rows.tolist()]
