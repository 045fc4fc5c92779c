"""The operations as torch knows them: schemas, kernels, and fakes for tracing."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dicache.extension import reference
from dicache.extension.arguments import check_apart, check_combine, check_out, check_sums
from dicache.extension.choice import choose
from dicache.extension.layout import like

_library = torch.library.Library("dicache", "DEF")
_library.define("residual_sums(Tensor a, Tensor b) -> Tensor")
_library.define("residual_sums_out(Tensor a, Tensor b, Tensor(a!) out) -> ()")
_library.define("combine(Tensor[] terms, Tensor coefficients, bool to_float) -> Tensor")


def residual_sums(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Six sums per sample, (B, ...), (B, ...) -> (B, 6) float32, in one pass over memory:

        sum|a - b|, sum|b|, sum(a - b)^2, sum b^2, sum a b, sum a^2

    What is not finite comes out not finite. A sample's sums depend on its own values and strides only, not on the rest
    of the batch nor on the number of threads. `out`, (B, 6) float32, is written if given. Raises ArgumentError unless a
    and b have one shape, dtype (float32, bfloat16, float16, float64) and device, and where `out` is of the wrong shape
    or overlaps them.
    """
    if out is None:
        return _SUMS(a, b)
    _SUMS_OUT(a, b, out)
    return out


def combine(terms: Sequence[Tensor], coefficients: Tensor, *, to_float: bool = False) -> Tensor:
    """sum_k c[:, k] x_k per sample, in one pass over memory: up to 16 terms (B, ...) and coefficients (B, terms) on the
    host -> a new (B, ...), laid out as the first term, of the terms' dtype, or float32 with `to_float`.

    A term is not read where its coefficient is 0; a row with the one coefficient 1 is a bitwise copy. Added up in
    float32. Raises ArgumentError unless the terms have one shape, dtype and device.
    """
    return _COMBINE(list(terms), coefficients, to_float)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    check_sums(a, b)
    if a.dtype == torch.float64:
        return reference.residual_sums(a, b)
    out = torch.empty((a.shape[0], 6), dtype=torch.float32, device=a.device)
    return _summed(a, b, out)


def _sums_out(a: Tensor, b: Tensor, out: Tensor) -> None:
    check_sums(a, b)
    check_out(out, a)
    check_apart(out, a, b)
    if a.dtype == torch.float64:
        out.copy_(reference.residual_sums(a, b))
    else:
        _summed(a, b, out)


def _summed(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    if a.numel() == 0:
        return out.zero_()
    choose(a.device.type).path.residual_sums(a, b, out)
    return out


def _combine(terms: list[Tensor], coefficients: Tensor, to_float: bool) -> Tensor:
    check_combine(terms, coefficients)
    first = terms[0]
    if first.dtype == torch.float64:
        return like(first, first.dtype).copy_(reference.combine(terms, coefficients))
    out = like(first, torch.float32 if to_float else first.dtype)
    if first.numel():
        choose(first.device.type).path.combine(terms, coefficients, out)
    return out


def _fake_sums(a: Tensor, b: Tensor) -> Tensor:
    check_sums(a, b)
    return a.new_empty((a.shape[0], 6), dtype=torch.float32)


def _fake_sums_out(a: Tensor, b: Tensor, out: Tensor) -> None:
    check_sums(a, b)
    check_out(out, a)


def _fake_combine(terms: list[Tensor], coefficients: Tensor, to_float: bool) -> Tensor:
    check_combine(terms, coefficients)
    wide = to_float and terms[0].dtype != torch.float64
    return like(terms[0], torch.float32 if wide else terms[0].dtype)


for _name, _kernel, _fake in (
    ("residual_sums", _sums, _fake_sums),
    ("residual_sums_out", _sums_out, _fake_sums_out),
    ("combine", _combine, _fake_combine),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"dicache::{_name}", _fake, lib=_library)

_SUMS = torch.ops.dicache.residual_sums.default
_SUMS_OUT = torch.ops.dicache.residual_sums_out.default
_COMBINE = torch.ops.dicache.combine.default
