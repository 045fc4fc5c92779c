"""The linear layers of a denoiser's blocks in 8-bit integers, weights per output channel and activations per token as
they come (torchao), with CacheQuant's correction of what that costs (arXiv 2503.01323), and the way back.

    O_q = s_x s_w (X_q W_q) + b                             what a quantised layer gives, of 8-bit integers X_q and W_q
    a, d = argmin sum |a O_q + d - O|^2                     per output channel, O what it gave in full precision
    s_w <- a s_w,    b <- a b + d                           folded: the corrected layer does no more work

Two lines of a least squares each, fitted where the layer runs in draws of the user's. The cache's own correction
(`dicache.fit`, kind "affine") and its schedule come after: fitted and found on the quantised model.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dicache.api import denoisers
from dicache.errors import ModeError, UnsupportedModelError
from dicache.hosts.attachment import attached_to
from dicache.models.find_blocks import family_of, find
from dicache.regressions.moments import exact, line

NARROWEST = 16
"""Channels: of fewer, 8-bit integers save nothing. Layers inside norms, which move and scale all tokens at once by the
time, stay as they are too: they multiply next to nothing, and are what errs most.
"""


class ChannelSums:
    """n, sum q, sum o, sum q^2, sum q o per channel, (5, C), float64: what a line from q to o needs."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, q: Tensor, o: Tensor) -> None:
        q, o = (exact(t).flatten(0, -2) for t in (q, o))
        sums = torch.stack([term.sum(0) for term in (torch.ones_like(q), q, o, q * q, q * o)])
        self.sums = sums if self.sums is None else self.sums + sums


@dataclass
class Quantised:
    """The layers by their path, until `restore`."""

    layers: dict[str, nn.Linear]
    before: dict[str, tuple[nn.Parameter, nn.Parameter | None]] = field(repr=False)
    """Weight and bias in full precision, which stay in memory: `forget` lets go of them."""

    def correct(self, draw: Callable[[], object]) -> None:
        """Fold what the layers' outputs are off by, per channel, as seen while `draw` runs the pipeline; what was
        folded before is dropped first. Raises ModeError where the full precision was let go.
        """
        if not self.before:
            raise ModeError("correct needs the weights in full precision, and they were let go. Correct before that.")
        for path, layer in self.layers.items():
            weight, bias = self.before[path]
            _to_int8(layer, weight.detach(), _configuration())
            layer.register_parameter("bias", bias)
        seen = {path: ChannelSums() for path in self.layers}
        handles = [
            layer.register_forward_hook(partial(_compare, *self.before[path], seen[path]))
            for path, layer in self.layers.items()
        ]
        try:
            with torch.no_grad():
                draw()
        finally:
            for handle in handles:
                handle.remove()
        for path, layer in self.layers.items():
            sums = seen[path].sums
            if sums is not None:
                _fold(layer, *self.before[path], *line(sums))

    def forget(self) -> None:
        """Let go of the weights in full precision; there is no way back then."""
        self.before = {}

    def restore(self) -> None:
        """The very parameters of before. Raises ModeError where they were let go."""
        if not self.before:
            raise ModeError("the weights in full precision were let go, so they cannot be put back. Load them anew.")
        for path, layer in self.layers.items():
            layer.weight, bias = self.before[path]
            layer.register_parameter("bias", bias)


def quantise(target: Any) -> Quantised:  # noqa: ANN401
    """Put the linear layers inside the blocks of a pipeline's denoisers, or of a denoiser, into 8-bit integers, in
    place. Do it before `dicache.enable`: profiles, schedules and coefficients belong to the weights as they are.

    Raises ModeError without torchao or where a cache is on, UnsupportedModelError where there is no
    layer of 16 channels or more. The model is then as it was.
    """
    configuration = _configuration()
    layers: dict[str, nn.Linear] = {}
    for name, denoiser in denoisers(target).items():
        if attached_to(denoiser) is not None:
            raise ModeError("a cache is on this model. Quantise first, and enable it then.")
        for path, block in find(denoiser, family_of(denoiser, None)).blocks.items():
            for inside, module in block.named_modules():
                wide = type(module) is nn.Linear and min(module.weight.shape) >= NARROWEST
                if wide and not any("norm" in part for part in inside.split(".")):
                    layers[".".join(filter(None, (name, path, inside)))] = module
    if not layers:
        raise UnsupportedModelError(f"no block of {type(target).__name__} has a linear layer to quantise.")
    before = {path: _parameters(layer) for path, layer in layers.items()}
    for layer in layers.values():
        _to_int8(layer, layer.weight.detach(), configuration)
    return Quantised(layers, before)


def _parameters(layer: nn.Linear) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight and bias."""
    return layer.get_parameter("weight"), layer._parameters["bias"]


def _configuration() -> Any:  # noqa: ANN401
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    except ImportError as error:
        raise ModeError("quantise needs torchao: pip install 'dicache[int8]'.") from error
    return Int8DynamicActivationInt8WeightConfig()


def _to_int8(layer: nn.Linear, weight: Tensor, configuration: Any) -> None:  # noqa: ANN401
    from torchao.quantization import quantize_

    layer.weight = nn.Parameter(weight, requires_grad=False)
    with warnings.catch_warnings(action="ignore"):
        quantize_(layer, configuration)


def _compare(
    weight: Tensor, bias: Tensor | None, sums: ChannelSums, layer: nn.Module, args: tuple[Tensor], output: Tensor
) -> None:
    sums.add(output, F.linear(args[0], weight, bias))


def _fold(layer: nn.Linear, weight: Tensor, bias: Tensor | None, a: Tensor, d: Tensor) -> None:
    """Into the scales, in place: the integers stay. A slope that is not positive is none that a scale can have, and
    stays 1.
    """
    positive = a > 0
    a, d = torch.where(positive, a, 1.0), torch.where(positive, d, 0.0)
    a, d = a.to(weight), d.to(weight)
    scales = layer.weight.scale  # type: ignore[attr-defined]  # (C, 1), of torchao's tensors
    assert isinstance(scales, Tensor)
    scales.mul_(a.view_as(scales))
    moved = d if bias is None else a * bias.detach() + d
    layer.bias = nn.Parameter(moved, requires_grad=False)
