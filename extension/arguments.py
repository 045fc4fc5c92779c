"""What the operations take. Native code sees bare pointers, so everything is checked here, before every call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dicache.errors import ArgumentError

NATIVE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes of the native paths, and their numbers there."""
DTYPES = (*NATIVE, torch.float64)
MOST_TERMS = 16


def check_sums(a: Tensor, b: Tensor) -> None:
    """Raises ArgumentError unless both are (B, ...), of one shape, dtype and device."""
    _check_alike("residual_sums", "two tensors", (a, b))


def check_out(out: Tensor, a: Tensor) -> None:
    """Raises ArgumentError unless `out` is (B, 6) float32, contiguous, and on the same device."""
    wanted = (a.shape[0], 6)
    if out.shape != wanted or out.dtype != torch.float32 or out.device != a.device or not out.is_contiguous():
        raise ArgumentError(
            f"residual_sums got out={_shown(out)}. Expected a contiguous float32 {wanted} on {a.device}; "
            "leave it away to get a new one."
        )


def check_apart(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Raises ArgumentError where `out` shares memory with what is read. Needs real tensors."""
    if any(_overlap(out, x) for x in (a, b)):
        raise ArgumentError(
            "residual_sums got an out that overlaps what it is computed from. Expected memory of its own; "
            "leave it away to get a new one."
        )


def check_combine(terms: Sequence[Tensor], coefficients: Tensor) -> None:
    """Raises ArgumentError unless there are 1 to 16 terms (B, ...), of one shape, dtype and device, and coefficients
    (B, terms) in floating point on the host.
    """
    if not 1 <= len(terms) <= MOST_TERMS:
        raise ArgumentError(f"combine got {len(terms)} terms. Expected 1 to {MOST_TERMS}: combine in several calls.")
    _check_alike("combine", "terms", terms)
    wanted = (terms[0].shape[0], len(terms))
    if coefficients.shape != wanted or not coefficients.is_floating_point() or coefficients.device.type != "cpu":
        raise ArgumentError(
            f"combine got coefficients {_shown(coefficients)}. Expected floating {wanted}, "
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


def _shown(t: Tensor) -> str:
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
