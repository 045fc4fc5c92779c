"""How a step mixed its outputs, by least squares from its latents:

    x' = p x + sum_b c_b v_b        per sample for (p, c_1, ..),    m_b = c_b / sum c

over what the step moved: tokens of pictures to go by stand beside the latent, and no output changes them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dicache.tensors.norms import root_mean_square

PARALLEL = 1e-9
"""Squared sine under which vectors count as parallel, with their rounding."""


LEAST, ELSEWHERE = 0.25, 1e-3
"""All but this share of the elements are off by this much, relative and beyond rounding, where a step mixed in what
nobody saw.
"""


def denoised(latent: Tensor, output: Tensor) -> Tensor:
    """The part of a denoiser's input that is denoised: pictures to go by are joined behind it, along one axis."""
    if latent.ndim != output.ndim:
        return latent
    longer = [i for i in range(1, latent.ndim) if latent.shape[i] != output.shape[i]]
    if len(longer) != 1 or latent.shape[longer[0]] < output.shape[longer[0]]:
        return latent
    return latent.narrow(longer[0], 0, output.shape[longer[0]])


def fit(before: Tensor, after: Tensor, outputs: Sequence[Tensor], solved: tuple[float, float] | None = None) -> Tensor:
    """The mixture (len(outputs), B) float64, from latents and outputs of one step, all (B, ...). Where p and the sum of
    all c are known, only how the sum is shared out is measured: noise that is drawn anew hides the rest.
    """
    if len(outputs) == 1 or any(output.shape != before.shape for output in (after, *outputs)):
        return torch.ones(len(outputs), before.shape[0], dtype=torch.float64)
    moved = (before != after).any(-1, keepdim=True).expand_as(before)
    if solved is None:
        coefficients = _least_squares((before, *outputs), after, moved)[:, 1:]
    else:
        from_latent, made = solved
        first, *rest = (output.double() for output in outputs)
        remainder = after.double() - from_latent * before.double() - made * first
        shares = _least_squares([other - first for other in rest], remainder, moved)
        coefficients = torch.cat([made - shares.sum(1, keepdim=True), shares], dim=1)
    mixture = coefficients / coefficients.sum(1, keepdim=True)
    return torch.where(mixture.isfinite().all(1, keepdim=True), mixture, 1.0).T


def made_elsewhere(before: Tensor, after: Tensor, output: Tensor, solved: tuple[float, float]) -> bool:
    """Whether a step made `after` of more than the latent and this output, (B, ...) each, in all of some sample: what
    is blended in or masked leaves a part as the solver makes it, a guidance branch of another process leaves none.
    """
    if not before.shape == after.shape == output.shape:
        return False
    from_latent, made = solved
    own = (made * output.double()).flatten(1)
    left = (after.double() - from_latent * before.double()).flatten(1) - own
    rounded = after.double().abs().flatten(1) * torch.finfo(after.dtype).eps / 2
    least = (left.abs() - rounded).kthvalue(1 + int(LEAST * own.shape[1]), dim=1).values
    return bool((least > ELSEWHERE * abs(made) * root_mean_square(output)).any())


def _least_squares(terms: Sequence[Tensor], total: Tensor, moved: Tensor) -> Tensor:
    """(B, terms) on the host: what to take of each for their sum to be `total`, where it `moved`."""
    columns = torch.stack([t.flatten(1).double() for t in terms], dim=2)
    columns = columns * moved.flatten(1)[:, :, None]
    gram = (columns[:, :, :, None] * columns[:, :, None]).sum(1)
    right = (columns * total.flatten(1).double()[:, :, None]).sum(1)[:, :, None]
    ridge = (
        1e-12
        * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        * torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    )
    return torch.linalg.solve_ex(gram + ridge, right)[0][:, :, 0].cpu()


def parallel(latent: Tensor, outputs: Sequence[Tensor]) -> bool:
    """Whether some combination of them is nothing: in pure noise latents and outputs may be. Then nobody can tell from
    the next latent what was made of which.
    """
    if any(output.shape != latent.shape for output in outputs):
        return False
    columns = torch.stack([t.flatten(1).double() for t in (latent, *outputs)], dim=2)
    gram = columns.mT @ columns
    lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
    return float(torch.linalg.eigvalsh(gram / (lengths[:, :, None] * lengths[:, None])).min()) < PARALLEL
