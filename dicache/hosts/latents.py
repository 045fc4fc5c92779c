"""A denoiser's latents and predictions as one tensor each, whatever the model takes and gives: one tensor, a list of
samples, or several streams that are denoised side by side.

    a tensor (R, ...)                  as it is
    a list of R samples                stacked, (R, ...)
    several streams (R, ...), (R, ..)  flattened and joined, (R, D)

What the session hands back takes the way back.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from dicache.errors import UnsupportedModelError
from dicache.tensors.tree import Tree, map_tensors, plain, tensors


def latent_of(model: str, given: Mapping[str, Tree], names: Sequence[str]) -> Tensor:
    """What is denoised among a denoiser's inputs, (R, ...); `names` as in `dicache.models.family.Family.latents`.
    Raises UnsupportedModelError where there is none, or samples of several sizes.
    """
    if names:
        return _joined([given[name] for name in names if isinstance(given.get(name), Tensor)], model)
    first = next(iter(given.values()), None)
    if isinstance(first, list) and first and all(isinstance(sample, Tensor) for sample in first):
        return _stacked(model, first)
    latents = (t for t in tensors(tuple(given.values())) if t.is_floating_point() and t.ndim > 1)
    latent = None if isinstance(first, list | tuple) else next(latents, None)
    return _joined([] if latent is None else [latent], model)


def prediction_of(model: str, latent: Tensor, given: Mapping[str, Tree], names: Sequence[str], output: Tree) -> Tensor:
    """What a denoiser returned for it, (R, ...). Raises UnsupportedModelError where it is something else."""
    found = tensors(plain(output))
    streams = sum(isinstance(given.get(name), Tensor) for name in names) or 1
    if len(found) == streams and all(t.ndim and t.shape[0] == latent.shape[0] for t in found):
        return _joined(found, model)
    if len(found) == latent.shape[0] and isinstance(next(iter(given.values())), list):
        return _stacked(model, found)
    shapes = ", ".join(str(tuple(t.shape)) for t in found)
    raise UnsupportedModelError(
        f"{model} returned {len(found)} tensors ({shapes}) for a latent of {tuple(latent.shape)}. Expected one "
        "prediction with the samples on its first axis; for several streams name them in a dicache.Family(latents=...)."
    )


def returned(output: Tree, prediction: Tensor) -> Tree:
    """The denoiser's output with another prediction in it; the same kind of object."""
    found = tensors(plain(output))
    parts = iter([prediction] if len(found) == 1 else _apart(prediction, found))
    if isinstance(output, Tensor):
        return next(parts)
    filled = map_tensors(lambda _: next(parts), plain(output))
    return type(output)(**dict(zip(output.keys(), filled, strict=True))) if hasattr(output, "to_tuple") else filled


def _apart(prediction: Tensor, found: list[Tensor]) -> Iterator[Tensor]:
    if len(found) == prediction.shape[0] and found[0].shape == prediction.shape[1:]:
        yield from prediction.unbind(0)
        return
    ends = list(accumulate(t[0].numel() for t in found))
    for t, end in zip(found, ends, strict=True):
        yield prediction[:, end - t[0].numel() : end].reshape(t.shape)


def _joined(streams: Sequence[Tensor], model: str) -> Tensor:
    if not streams:
        raise UnsupportedModelError(
            f"{model} was called without a latent. Expected a floating tensor with a batch axis as its first input."
        )
    return streams[0] if len(streams) == 1 else torch.cat([t.flatten(1) for t in streams], dim=1)


def _stacked(model: str, samples: Sequence[Tensor]) -> Tensor:
    if len({sample.shape for sample in samples}) > 1:
        raise UnsupportedModelError(
            f"{model} was called with samples of {len({s.shape for s in samples})} sizes in one batch. "
            "Expected one size: run each size by itself."
        )
    return torch.stack(list(samples))
