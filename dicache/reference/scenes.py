"""The small world of the reference model: scenes on a 3 x 3 grid, and the captions that name them.

A scene is one to four things in different cells, on one background. Its caption lists the things in the order of their
cells:

    top-left large striped blue circle, bottom small red star on grey checkered background

    caption    = thing {"," thing} "on" background
    thing      = cell size [fill] colour shape             fill is left out when plain
    background = colour [pattern] "background"             pattern is left out when plain
               | colour colour "gradient" "background"     from the first colour, at the top, to the second

Every captioned attribute is drawn, and every drawn attribute but a jitter of about a pixel is captioned, so that a
picture can be held against its caption word by word. Captions differ in difficulty (one plain thing, or four patterned
ones on a pattern): what adaptive caching can save differs with them.
"""

import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dicache.errors import CaptionError

Split = Literal["train", "calibration", "test"]

CELLS = ("top-left", "top", "top-right", "left", "center", "right", "bottom-left", "bottom", "bottom-right")
SIZES = ("small", "large")
FILLS = ("plain", "striped", "checkered")
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
PATTERNS = ("plain", "striped", "checkered", "gradient")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.16),
    "green": (0.16, 0.65, 0.25),
    "blue": (0.17, 0.32, 0.86),
    "yellow": (0.96, 0.85, 0.18),
    "purple": (0.56, 0.20, 0.68),
    "orange": (0.96, 0.54, 0.10),
    "cyan": (0.20, 0.78, 0.84),
    "pink": (0.97, 0.55, 0.74),
    "white": (0.96, 0.96, 0.96),
    "black": (0.08, 0.08, 0.08),
    "grey": (0.50, 0.50, 0.52),
    "brown": (0.48, 0.30, 0.16),
}
WORDS = tuple(dict.fromkeys((*CELLS, *SIZES, *FILLS, *PATTERNS, *COLOURS, *SHAPES, "on", "background")))


@dataclass(frozen=True)
class Thing:
    """One object: where it is, how it looks, and its jitter from the cell's centre as a share of the picture."""

    cell: str
    size: str
    fill: str
    colour: str
    shape: str
    jitter: tuple[float, float] = (0.0, 0.0)

    @property
    def attributes(self) -> dict[str, str]:
        """What its caption says of it."""
        return {"cell": self.cell, "size": self.size, "fill": self.fill, "colour": self.colour, "shape": self.shape}


@dataclass(frozen=True)
class Background:
    pattern: str
    colour: str
    second: str | None = None
    """The colour at the bottom of a gradient, None for the other patterns."""

    @property
    def attributes(self) -> dict[str, str | None]:
        """What its caption says of it."""
        return {"pattern": self.pattern, "colour": self.colour, "second": self.second}


@dataclass(frozen=True)
class Scene:
    things: tuple[Thing, ...]
    background: Background


def sample(rng: np.random.Generator) -> Scene:
    """Draw a scene: 1-4 things, no thing in the background's first colour."""
    first, second = rng.choice(list(COLOURS), 2, replace=False)
    pattern = str(rng.choice(PATTERNS, p=[0.5, 0.15, 0.15, 0.2]))
    background = Background(pattern, str(first), str(second) if pattern == "gradient" else None)
    count = 1 + int(rng.choice(4, p=[0.3, 0.3, 0.25, 0.15]))
    cells = sorted(rng.choice(len(CELLS), count, replace=False))
    return Scene(tuple(_thing(rng, CELLS[cell], background.colour) for cell in cells), background)


def _thing(rng: np.random.Generator, cell: str, avoid: str) -> Thing:
    return Thing(
        cell=cell,
        size=str(rng.choice(SIZES)),
        fill=str(rng.choice(FILLS, p=[0.7, 0.15, 0.15])),
        colour=str(rng.choice([colour for colour in COLOURS if colour != avoid])),
        shape=str(rng.choice(SHAPES)),
        jitter=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
    )


def caption(scene: Scene) -> str:
    """The sentence that names every attribute of the scene."""
    things = ", ".join(_phrase(t.cell, t.size, t.fill, t.colour, t.shape) for t in scene.things)
    back = scene.background
    second = (back.second,) if back.second else ()
    return f"{things} on {_phrase(back.colour, *second, back.pattern, 'background')}"


def _phrase(*words: str) -> str:
    return " ".join(word for word in words if word != "plain")


def parse(text: str) -> Scene:
    """The scene a caption names, the inverse of `caption` up to jitter.

    Raises CaptionError for an empty caption, an unknown word, or words out of order.
    """
    words = text.lower().replace(",", " ").split()
    check_words(words)
    if not words:
        raise CaptionError(f"the caption is empty. Expected for example: {EXAMPLE!r}")
    left = _Words(words, text)
    things = [left.thing()]
    while not left.accept(("on",)):
        things.append(left.thing())
    background = left.background()
    cells = [thing.cell for thing in things]
    if len(set(cells)) < len(cells) or len(things) > 4:
        raise CaptionError(
            f"{text!r} names {len(things)} things in cells {cells}. Expected one to four, each in a cell of its own."
        )
    return Scene(tuple(things), background)


EXAMPLE = "top-left large striped blue circle, bottom small red star on grey checkered background"


def check_words(words: list[str]) -> None:
    """Raise CaptionError if a word is not one the reference model knows."""
    for word in words:
        if word not in WORDS:
            near = difflib.get_close_matches(word, WORDS, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Known words: {' '.join(WORDS)}."
            raise CaptionError(
                f"the reference model does not know the word {word!r}. {hint} Expected for example: {EXAMPLE!r}"
            )


class _Words:
    """The words of a caption not yet read, left to right."""

    def __init__(self, words: list[str], text: str) -> None:
        self.words, self.text = words, text

    def accept(self, allowed: tuple[str, ...]) -> str | None:
        return self.words.pop(0) if self.words and self.words[0] in allowed else None

    def expect(self, what: str, allowed: tuple[str, ...]) -> str:
        word = self.accept(allowed)
        if word is None:
            left = repr(self.words[0]) if self.words else "the end"
            raise CaptionError(
                f"in {self.text!r}: expected {what} ({', '.join(allowed)}), found {left}. For example: {EXAMPLE!r}"
            )
        return word

    def thing(self) -> Thing:
        cell, size = self.expect("a cell", CELLS), self.expect("a size", SIZES)
        fill = self.accept(FILLS) or "plain"
        return Thing(cell, size, fill, self.expect("a colour", tuple(COLOURS)), self.expect("a shape", SHAPES))

    def background(self) -> Background:
        first = self.expect("a colour", tuple(COLOURS))
        second = self.accept(tuple(COLOURS))
        pattern = self.expect("'gradient'", ("gradient",)) if second else self.accept(PATTERNS[:3]) or "plain"
        self.expect("'background'", ("background",))
        if self.words:
            raise CaptionError(
                f"in {self.text!r}: expected nothing after 'background', found {' '.join(self.words)!r}."
            )
        return Background(pattern, first, second)


def split_of(text: str) -> Split:
    """The split a caption belongs to, by its hash: 80 % train, 10 % calibration, 10 % test. Splits cannot overlap."""
    tenth = hashlib.sha256(text.encode()).digest()[0] * 10 // 256
    return "test" if tenth == 9 else "calibration" if tenth == 8 else "train"


def scenes(split: Split, seed: int) -> Iterator[Scene]:
    """An endless stream of scenes whose captions belong to `split`."""
    if split not in get_args(Split):
        raise CaptionError(f"there is no split {split!r}. Expected one of {', '.join(get_args(Split))}.")
    rng = np.random.default_rng(seed)
    while True:
        scene = sample(rng)
        if split_of(caption(scene)) == split:
            yield scene


def prompts(split: Split, n: int, seed: int = 0) -> list[str]:
    """`n` different captions of a split, always the same for the same seed."""
    if n < 0:
        raise CaptionError(f"{n} captions were asked for. Expected 0 or more.")
    captions: dict[str, None] = {}
    for scene in scenes(split, seed):
        if len(captions) >= n:
            break
        captions[caption(scene)] = None
    return list(captions)
