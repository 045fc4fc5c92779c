"""What "may differ by so much" is measured in: how far a sample is from the uncached run of the same seed.

    latent     ||x - x_ref|| / ||x_ref|| of the final latent; every profile has it
    psnr       of the picture, in dB, of values in [0, 1]
    ssim       of the picture, 1 for equal ones
    any name   a function of the user's, (images, reference) -> (B,), less is better; images (B, C, H, W) in [0, 1]

PSNR and SSIM are losses with their sign turned. Other units than the latent's need a profile that was calibrated on
them: nothing in a run tells how far the picture is from one that was never drawn.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from dicache.errors import BudgetError, ProfileError
from dicache.tensors.norms import relative_change, root_mean_square
from dicache.types import LATENT, Rows, Wanted

Metric = Callable[[Tensor, Tensor], Rows]
"""(images, reference), (B, C, H, W) each in [0, 1] -> (B,): less is better."""
Metrics = str | Iterable[str] | Mapping[str, Metric]
FAR = 120.0
"""PSNR of equal pictures, in dB: a loss must be finite."""


def Psnr(decibel: float) -> Wanted:
    """A picture at least this close to the uncached one: `error_budget=dicache.Psnr(30)`."""
    return _wanted("psnr", -decibel)


def Ssim(similarity: float) -> Wanted:
    """A picture at least this similar to the uncached one, 1 for equal: `error_budget=dicache.Ssim(0.95)`."""
    return _wanted("ssim", -similarity)


def Within(metric: str, bound: float) -> Wanted:
    """At most `bound` in a metric of the user's that the profile was calibrated on."""
    return _wanted(metric, bound)


def _wanted(metric: str, bound: float) -> Wanted:
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
        raise BudgetError(f"the budget in {metric} is {bound!r}. Expected a finite number.")
    return Wanted(metric, float(bound))


def asked(wanted: Wanted) -> str:
    """As a user asks for it, rounded to three digits of which none makes it harder: 0.0123, Psnr(31.2)."""
    bound = wanted.bound
    if bound and math.isfinite(bound):
        size = 10.0 ** (2 - math.floor(math.log10(max(abs(bound), 1e-12))))
        bound = math.ceil(bound * size - 1e-9) / size
    if wanted.metric == LATENT:
        return f"{bound:.3g}"
    name = {"psnr": "Psnr", "ssim": "Ssim"}.get(wanted.metric)
    return f"Within({wanted.metric!r}, {bound:.3g})" if name is None else f"{name}({-bound:.3g})"


def relative_error(latents: Tensor, reference: Tensor) -> Rows:
    """||x - x_ref|| / ||x_ref||, (B, ...) -> (B,) float64 on the host."""
    return relative_change(latents, reference).double().cpu()


def resolved(metrics: Metrics) -> dict[str, Metric]:
    """The functions of the metrics beyond the latent's, by name. Raises ProfileError for a name that is not known."""
    if isinstance(metrics, Mapping):
        named = dict(metrics)
    else:
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        if unknown := [name for name in names if name not in (LATENT, *_BUILT_IN)]:
            raise ProfileError(
                f"there is no metric {unknown[0]!r}. Expected {LATENT}, {', '.join(_BUILT_IN)}, or a mapping from your "
                "own names to functions (images, reference) -> (B,)."
            )
        named = {name: _BUILT_IN[name] for name in names if name != LATENT}
    if bad := [name for name, function in named.items() if not callable(function) or name == LATENT]:
        raise ProfileError(f"metric {bad[0]!r} must be a function (images, reference) -> (B,) under a name of its own.")
    return named


def loss(name: str, metric: Metric, images: Tensor, reference: Tensor) -> Rows:
    """(B,) float64 on the host. Raises ProfileError unless the metric gives one finite number per image."""
    losses = torch.as_tensor(metric(images, reference)).detach().double().cpu()
    if losses.shape != (len(images),) or not bool(losses.isfinite().all()):
        raise ProfileError(f"metric {name!r} gave {losses.tolist()!r:.80}. Expected {len(images)} finite numbers.")
    return losses


def _psnr(images: Tensor, reference: Tensor) -> Rows:
    return (20 * root_mean_square(images.float() - reference.float()).double().log10()).clamp(min=-FAR)


def _ssim(images: Tensor, reference: Tensor) -> Rows:
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ProfileError("SSIM is measured with torchmetrics: pip install torchmetrics.") from error
    pairs = zip(images.float(), reference.float(), strict=True)
    return torch.stack([-structural_similarity_index_measure(a[None], b[None], data_range=1.0) for a, b in pairs])


_BUILT_IN: dict[str, Metric] = {"psnr": _psnr, "ssim": _ssim}
