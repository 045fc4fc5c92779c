"""The operations as torch knows them: schemas, kernels, and fakes for tracing. Native code sees bare pointers, so what
they take is checked here, before every call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dicache.errors import ArgumentError
from dicache.extension import reference
from dicache.extension.choice import choose
from dicache.extension.native import MOST_TERMS, NATIVE

DTYPES = (*NATIVE, torch.float64)
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
    _check_sums(a, b)
    if a.dtype == torch.float64:
        return reference.residual_sums(a, b)
    out = torch.empty((a.shape[0], 6), dtype=torch.float32, device=a.device)
    return _summed(a, b, out)


def _sums_out(a: Tensor, b: Tensor, out: Tensor) -> None:
    _check_sums(a, b)
    _check_out(out, a)
    _check_apart(out, a, b)
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
    _check_combine(terms, coefficients)
    first = terms[0]
    if first.dtype == torch.float64:
        return _like(first, first.dtype).copy_(reference.combine(terms, coefficients))
    out = _like(first, torch.float32 if to_float else first.dtype)
    if first.numel():
        choose(first.device.type).path.combine(terms, coefficients, out)
    return out


def _fake_sums(a: Tensor, b: Tensor) -> Tensor:
    _check_sums(a, b)
    return a.new_empty((a.shape[0], 6), dtype=torch.float32)


def _fake_sums_out(a: Tensor, b: Tensor, out: Tensor) -> None:
    _check_sums(a, b)
    _check_out(out, a)


def _fake_combine(terms: list[Tensor], coefficients: Tensor, to_float: bool) -> Tensor:
    _check_combine(terms, coefficients)
    wide = to_float and terms[0].dtype != torch.float64
    return _like(terms[0], torch.float32 if wide else terms[0].dtype)


def _check_sums(a: Tensor, b: Tensor) -> None:
    """Raises ArgumentError unless both are (B, ...), of one shape, dtype and device."""
    _check_alike("residual_sums", "two tensors", (a, b))


def _check_out(out: Tensor, a: Tensor) -> None:
    """Raises ArgumentError unless `out` is (B, 6) float32, contiguous, and on the same device."""
    wanted = (a.shape[0], 6)
    if out.shape != wanted or out.dtype != torch.float32 or out.device != a.device or not out.is_contiguous():
        raise ArgumentError(
            f"residual_sums got out={_described(out)}. Expected a contiguous float32 {wanted} on {a.device}; "
            "leave it away to get a new one."
        )


def _check_apart(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Raises ArgumentError where `out` shares memory with what is read. Needs real tensors."""
    if any(_overlap(out, x) for x in (a, b)):
        raise ArgumentError(
            "residual_sums got an out that overlaps what it is computed from. Expected memory of its own; "
            "leave it away to get a new one."
        )


def _check_combine(terms: Sequence[Tensor], coefficients: Tensor) -> None:
    """Raises ArgumentError unless there are 1 to 16 terms (B, ...), of one shape, dtype and device, and coefficients
    (B, terms) in floating point on the host.
    """
    if not 1 <= len(terms) <= MOST_TERMS:
        raise ArgumentError(f"combine got {len(terms)} terms. Expected 1 to {MOST_TERMS}: combine in several calls.")
    _check_alike("combine", "terms", terms)
    wanted = (terms[0].shape[0], len(terms))
    if coefficients.shape != wanted or not coefficients.is_floating_point() or coefficients.device.type != "cpu":
        raise ArgumentError(
            f"combine got coefficients {_described(coefficients)}. Expected floating {wanted}, "
            "one row per sample and one column per term, on the cpu."
        )


def _check_alike(name: str, what: str, tensors: Sequence[Tensor]) -> None:
    first = tensors[0]
    if first.ndim == 0 or any(t.shape != first.shape for t in tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise ArgumentError(f"{name} needs {what} of one shape with a batch axis, not {shapes}.")
    if first.dtype not in DTYPES or any(t.dtype != first.dtype for t in tensors):
        dtypes = ", ".join(str(t.dtype).removeprefix("torch.") for t in tensors)
        raise ArgumentError(f"{name} needs {what} of one dtype, float32, bfloat16, float16 or float64, not {dtypes}.")
    if any(t.device != first.device for t in tensors):
        devices = ", ".join(str(t.device) for t in tensors)
        raise ArgumentError(f"{name} needs {what} on one device, not {devices}: move them to one first.")
    if any(t.layout != torch.strided for t in tensors):
        raise ArgumentError(f"{name} needs dense {what}: call to_dense() first.")


def _described(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)} on {t.device}"


def _overlap(x: Tensor, y: Tensor) -> bool:
    (x_begin, x_end), (y_begin, y_end) = _span(x), _span(y)
    return x_begin < y_end and y_begin < x_end


def _span(t: Tensor) -> tuple[int, int]:
    """The bytes from the first element to the last."""
    if t.numel() == 0:
        return 0, 0
    reach = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (reach + 1) * t.element_size()


def _like(t: Tensor, dtype: torch.dtype) -> Tensor:
    """A new tensor, (B, ...), whose samples are dense and follow each other: laid out as `t` where those of `t` are."""
    out = torch.empty_like(t, dtype=dtype)
    if t.numel() and out.stride(0) != t.numel() // t.shape[0]:
        return torch.empty(t.shape, dtype=dtype, device=t.device)
    return out


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
