"""Which places of a denoiser are decided on their own. A selector is part of a configuration; what it selects is data.

    Evaluation()          the whole denoiser call, S = 1: what saves most for its error, and the default
    Control()             the networks that feed the denoiser alone (ControlNets), while the denoiser computes
    Tokens(by)            the same, but where it is skipped some tokens run all the same
    Branches()            the calls, or rows, of all guidance branches but the strongest
    Tail(back)            all blocks after the probe's but the last `back`: S = 1, the model's head stays fresh
    Spans(size, back)     the same blocks in groups of `size`; 1: every block on its own
    Drafted()             a tail that the last block verifies
    Sublayers(kinds)      attention, cross-attention and feed-forward modules inside every block
    Linears()             every linear layer inside the blocks, so that all that is between them stays fresh (ICC)
    Skips(level, layers)  in a UNet: all that lies inside its outer skip connections: S = 1 (DeepCache)

Evaluations hold what the denoiser gave, branches what they differ by from the strongest one, spans what the blocks
added to the streams, sublayers what they gave. What a model adds to a stream between two sites (a ControlNet's
residuals) stays fresh; what it adds inside a span is held with the span.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from dicache.approximators.base import Approximator
from dicache.approximators.hold import Reuse
from dicache.approximators.linear import Extrapolate
from dicache.approximators.noise import ExtrapolateNoise
from dicache.errors import ModeError, UnsupportedModelError
from dicache.models.skips import deep
from dicache.token_choice.base import TokenChoice
from dicache.token_choice.by_error import LastError
from dicache.types import Kind, Site

__all__ = [
    "Branches",
    "Control",
    "Drafted",
    "Evaluation",
    "Kind",
    "Linears",
    "Sites",
    "Skips",
    "Spans",
    "Sublayers",
    "Tail",
    "Tokens",
]
TIMED: re.Pattern[str] = re.compile("norm|emb|ada|modulation|scale_shift|time")
"""In the paths of layers that read the time."""
NAMES: dict[Kind, tuple[str, ...]] = {
    Kind.ATTENTION: ("attn", "attn1", "self_attn", "attention", "self_attention"),
    Kind.CROSS_ATTENTION: ("attn2", "cross_attn", "cross_attention"),
    Kind.FEED_FORWARD: ("ff", "ffn", "mlp", "feed_forward", "ff_context", "ffn_context", "mlp_context"),
}


class Sites(ABC):
    inside_denoiser: bool = True
    """Whether they lie inside the denoiser."""
    approximators: ClassVar[tuple[Approximator, ...]] = (Extrapolate(), Reuse())
    """What fills them in where a configuration does not say it: a line, or the newest value."""
    holds_output: bool = False
    """Whether what is remembered of them is the denoiser's output."""

    @abstractmethod
    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        """From the blocks by their path, in order of execution; the first `depth` belong to the probe."""


@dataclass(frozen=True)
class Evaluation(Sites):
    """The whole denoiser call, filled in by a line in the noise, with a memory that fades or one that does not, or by
    the newest output.
    """

    inside_denoiser = False
    approximators: ClassVar[tuple[Approximator, ...]] = (ExtrapolateNoise(), ExtrapolateNoise(memory=math.inf), Reuse())
    holds_output = True

    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        return (Site("", Kind.EVALUATION, tuple(blocks)[depth:]),)


@dataclass(frozen=True)
class Control(Sites):
    """The networks that feed the denoiser alone and run beside it (ControlNets), as one: the denoiser computes at every
    step, with what they gave before where they do not run. The rule counts steps or goes by the noise: how far an error
    of theirs reaches the picture is not known. A rule for them beside other sites is `Config.control`.
    """

    inside_denoiser = False
    approximators: ClassVar[tuple[Approximator, ...]] = (Reuse(),)

    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        return (Site("", Kind.EVALUATION, tuple(blocks)[depth:]),)


@dataclass(frozen=True)
class Tokens(Evaluation):
    """The whole denoiser call, of which some tokens run where it is skipped: through all blocks, each against keys and
    values of the others that are stored. The output of the others is filled in as that of `Evaluation`. On the
    reference model, with 64 tokens, computing more steps whole is better at equal work.

    Blocks whose tokens meet anywhere but in torch's `scaled_dot_product_attention` are refused at the first call, by
    name. Raises ModeError for `by` that is no choice of tokens.
    """

    by: TokenChoice = field(default_factory=LastError)
    """Which tokens, per sample (`dicache.token_choice`)."""
    text: bool = False
    """Whether the text runs along, where blocks hand it on; else its keys and values stand still as well."""
    line: bool = True
    """Whether keys and values of the others go on along the line through their last two, where else they stand still
    and those of tokens that ran are kept until the next computed step. Takes the memory of them twice.
    """
    lasting: bool = False
    """Whether what a token's run showed its guess to be off by is added to its guesses until the next computed step, as
    caches do that are written to token by token (ToCa, ClusCa).
    """

    def __post_init__(self) -> None:
        if not isinstance(self.by, TokenChoice):
            raise ModeError(f"Tokens has by={self.by!r}. Expected a choice of tokens, for example LastError(0.25).")

    def text_tokens(self, length: int) -> int:
        """How many of so many tokens of a text run: one goes along where it stands still, as no stream may be empty."""
        return length if self.text else min(1, length)


@dataclass(frozen=True)
class Branches(Sites):
    """Every guidance branch but the one with the largest weight, which always computes."""

    inside_denoiser = False

    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        return (Site("", Kind.BRANCH, tuple(blocks)[depth:]),)


@dataclass(frozen=True)
class Spans(Sites):
    """Groups of `size` blocks. Raises ModeError for a size below 1, UnsupportedModelError where no block is left."""

    size: int | None = 1
    """None: all in one."""
    back: int = 0
    """Blocks at the end that always compute."""
    added: bool = True
    """Whether what a group adds to its inputs is held, or its outputs."""

    def __post_init__(self) -> None:
        if (self.size is not None and self.size < 1) or self.back < 0:
            raise ModeError(f"{self}: expected a size of 1 or more and back of 0 or more.")

    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        paths = tuple(blocks)[depth : max(0, len(blocks) - self.back)]
        size = self.size or len(paths)
        groups = [paths[i : i + size] for i in range(0, len(paths), size or 1)]
        return _some([_span(group, i, self.added) for i, group in enumerate(groups)], self)


@dataclass(frozen=True)
class Tail(Spans):
    """All blocks after the probe's, as one."""

    size: int | None = None


@dataclass(frozen=True)
class Drafted(Sites):
    """All blocks after the probe's but the last `check`, as one; those run on the draft and verify it (SpeCa, arXiv
    2509.11628). Where what they add is off from its own guess by more than

        e = ||r - r^|| / ||r||  >  max(threshold * decay^progress, floor)

    the draft is rejected and the call runs again, computing, for the rows of that sample: the rejection acts on its own
    step. The branch that is called first decides for all. The paper divides element by element, which explodes near 0.
    """

    threshold: float = 0.3
    decay: float = 0.05
    floor: float = 0.1
    check: int = 1

    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        paths = tuple(blocks)[depth:]
        draft, check = paths[: -self.check], paths[-self.check :]
        if not draft or self.check < 1:
            raise UnsupportedModelError(
                f"{self} leaves no block to draft: the denoiser has {len(paths)} after the probe's."
            )
        return _span(draft, 0), _span(check, 1, kind=Kind.CHECK)

    def tolerance(self, progress: float) -> float:
        return max(self.threshold * self.decay**progress, self.floor)


@dataclass(frozen=True)
class Skips(Sites):
    """All that lies inside the outer skip connections of a UNet, as one (DeepCache, arXiv 2312.00858). The outer blocks
    compute at every step; what enters the first of the outer up blocks is held, or extrapolated:

        h = conv_in(x);  r_k, h = down_k(h)  for k < level;    h = up_k(h^, r_k)  for the `level` last up blocks

    `Skips(1)`: the first down block and the last up block are fresh. `layers` are so many skip connections of the next
    level, each with the layer of the up block that reads it, and the layer of the down block that makes it: `Skips(0,
    layers=1)`, the cheapest, is conv_in and the last layer of the last up block. Of a UNet with two layers in a block
    DeepCache's `cache_branch_id` b is `Skips(*divmod(b + 1, 3))`.

    Raises ModeError for numbers that make no sense, UnsupportedModelError where the denoiser is no UNet or nothing lies
    inside.
    """

    level: int = 1
    """Levels of resolution that stay fresh, from the outside in."""
    layers: int = 0
    """Skip connections of the next level that do."""

    def __post_init__(self) -> None:
        if self.level < 0 or self.layers < 0 or self.level + self.layers < 1:
            raise ModeError(f"{self}: expected a level and layers of 0 or more, and one of them above 0.")

    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        paths = deep(blocks, self.level, self.layers)
        seen = [path for path in tuple(blocks)[:depth] if any(_lies_in(module, path) for module in paths)]
        if seen:
            raise UnsupportedModelError(
                f"a probe of {depth} blocks looks at {seen[0]}, which {self} skips. Use a probe of "
                f"{depth - len(seen)}, or a larger level."
            )
        return (_span(paths, 0, added=False),)


@dataclass(frozen=True)
class Sublayers(Sites):
    """Modules inside the blocks, known by their names; in the blocks of UNets, which hold lists of layers, inside of
    those. Raises UnsupportedModelError where there are none.
    """

    kinds: Sequence[Kind] = (Kind.ATTENTION, Kind.CROSS_ATTENTION, Kind.FEED_FORWARD)

    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        modules = [each for path in tuple(blocks)[depth:] for each in _sublayers(path, blocks[path], self.kinds)]
        return _some([Site(path, kind, (path,), i, added=False) for i, (path, kind) in enumerate(modules)], self)


@dataclass(frozen=True)
class Linears(Sites):
    """Every linear layer of the blocks by itself, so that what lies between is computed (ICC, arXiv 2505.05829); not
    those that read the time: what they give is no stream of tokens.
    """

    def select(self, blocks: dict[str, nn.Module], depth: int) -> tuple[Site, ...]:
        paths = [
            f"{path}.{name}"
            for path in tuple(blocks)[depth:]
            for name, module in blocks[path].named_modules()
            if isinstance(module, nn.Linear) and not TIMED.search(name)
        ]
        return _some([Site(path, Kind.LINEAR, (path,), i, added=False) for i, path in enumerate(paths)], self)


def _sublayers(path: str, module: nn.Module, kinds: Sequence[Kind]) -> Iterator[tuple[str, Kind]]:
    """Paths and kinds in a block. Only where none of any kind is a child of its own are its lists looked into."""
    children = [(f"{path}.{name}", child, _kind_of(name)) for name, child in module.named_children()]
    if any(kind is not None for _, _, kind in children):
        yield from ((inside, kind) for inside, _, kind in children if kind is not None and kind in kinds)
        return
    for inside, child, _ in children:
        layers = child.named_children() if isinstance(child, nn.ModuleList) else ()
        for name, layer in layers:
            if "to_q" in layer._modules:  # an attention of its own, on a map
                kind = Kind.CROSS_ATTENTION if vars(layer).get("is_cross_attention") else Kind.ATTENTION
                yield from [(f"{inside}.{name}", kind)] if kind in kinds else []
            else:
                yield from _sublayers(f"{inside}.{name}", layer, kinds)


def _kind_of(name: str) -> Kind | None:
    return next((kind for kind, names in NAMES.items() if name in names), None)


def _lies_in(module: str, block: str) -> bool:
    return module == block or module.startswith(f"{block}.")


def _span(paths: tuple[str, ...], index: int, added: bool = True, kind: Kind = Kind.SPAN) -> Site:
    name = paths[0] if len(paths) == 1 else f"{paths[0]}..{paths[-1]}"
    return Site(name, kind, paths, index, added)


def _some(sites: list[Site], selector: Sites) -> tuple[Site, ...]:
    if not sites:
        raise UnsupportedModelError(f"{selector} selects nothing in this denoiser. Use other sites, or Evaluation().")
    return tuple(sites)
