"""What the pictures of `emoji` are called, and how names are read: one token a word.

    caption = style name {tone}        flat waving hand, noto waving hand medium dark

`weights/emoji/names.txt` holds a line per name, with the styles that draw it. Prompts are captions without a tone. A
caption's split is that of its style and name by hash, so that a test caption's picture was never trained on in any
tone, though mostly its name was, in the other style.
"""

import hashlib
import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast

from dicache.errors import CaptionError, ReferenceModelError

Split = Literal["train", "calibration", "test"]
Style = Literal["noto", "flat"]
STYLES: tuple[Style, ...] = get_args(Style)
TONES = ("light", "medium", "dark")
FOLDER = Path(__file__).parent / "weights" / "emoji"
NAMES = FOLDER / "names.txt"
LENGTH = 16
_PAD, _END = "<pad>", "</s>"


@cache
def names() -> dict[str, tuple[str, ...]]:
    """Every name, as words, and the styles that draw it. Raises ReferenceModelError if the list is missing."""
    try:
        lines = NAMES.read_text().splitlines()
    except OSError as error:
        raise ReferenceModelError(
            f"the names of emoji cannot be read from {NAMES}: {error}. Run the bench from a checkout."
        ) from error
    pairs = (line.partition("\t") for line in lines)
    return {name: tuple(styles.split()) for name, _, styles in pairs}


def vocabulary() -> dict[str, int]:
    words = sorted({word for name in names() for word in name.split()} - {*STYLES, *TONES})
    return {word: i for i, word in enumerate((_PAD, _END, *STYLES, *TONES, *words))}


def split_of(style: str, name: str) -> Split:
    """80 % train, 10 % calibration, 10 % test."""
    tenth = hashlib.sha256(f"{style} {name}".encode()).digest()[0] % 10
    return "train" if tenth < 8 else "calibration" if tenth == 8 else "test"


def prompts(split: Split, n: int, seed: int = 0) -> list[str]:
    """`n` different captions of a split, always the same for the same seed.

    Raises CaptionError for a split that is none, or of fewer captions.
    """
    if split not in get_args(Split):
        raise CaptionError(f"there is no split {split!r}. Expected one of {', '.join(get_args(Split))}.")
    drawn = [f"{s} {name}" for name, styles in names().items() for s in styles if split_of(s, name) == split]
    if n > len(drawn):
        raise CaptionError(f"the split {split} has {len(drawn)} captions. Expected at most as many, not {n}.")
    return random.Random(f"{split} {seed}").sample(drawn, n)


class NameTokenizer(PreTrainedTokenizerFast):
    """Words to ids, (B, 16), and which are no padding. Raises CaptionError for a word that no name has."""

    def __call__(self, text: Any = None, *args: Any, max_length: int | None = None, **kwargs: Any) -> BatchEncoding:  # noqa: ANN401
        vocabulary = self.get_vocab()
        for caption in [text] if isinstance(text, str) else text:
            check_words(caption, vocabulary)
        return super().__call__(text, *args, max_length=min(max_length or LENGTH, LENGTH), **kwargs)


def check_words(caption: str, allowed: Iterable[str]) -> None:
    """Raises CaptionError for a caption with a word outside of `allowed`, or with more than fit."""
    words = caption.lower().split()
    if unknown := [word for word in words if word not in allowed]:
        raise CaptionError(
            f"no emoji's name has {', '.join(map(repr, unknown))}, in {caption!r}. Expected words of names, as in "
            f"'flat waving hand' (`dicache.bench.models.emoji_names.names()` has all)."
        )
    if len(words) >= LENGTH:
        raise CaptionError(f"{caption!r} has {len(words)} words. Expected at most {LENGTH - 1}.")


def tokenizer() -> NameTokenizer:
    ids = vocabulary()
    words = Tokenizer(models.WordLevel(ids, unk_token=_PAD))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, ids[_END])])
    return NameTokenizer(tokenizer_object=words, pad_token=_PAD, eos_token=_END, model_max_length=LENGTH)
