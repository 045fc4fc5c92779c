"""What approximators with fitted coefficients share: coefficients per site, held where they are used, and the anchor
that they are applied to, v_0, the newest exact value of each row, made at sigma_0.

Their values are (R, N, C): rows, tokens, channels; those of UNets, (R, C, H, W), have a token at every place. What is
fitted takes a share off the error of holding, not its order, so all have the law of holding, error ~ |tau|.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.hold import Reuse
from dicache.errors import FittedError, UnsupportedModelError
from dicache.models.identity import identity
from dicache.tensors.token_grid import tokens
from dicache.types import Action, Rows, Site


@dataclass(frozen=True, eq=False)
class FromCoefficients(Approximator):
    """Made by `dicache.fit`. A guess raises FittedError at a site or step that was not fitted, UnsupportedModelError
    where values are neither (R, N, C) nor (R, C, H, W).
    """

    coefficients: Mapping[str, Mapping[str, Tensor]]
    """By site and by name; float32."""
    sigmas: tuple[float, ...] = ()
    """Of the steps fitted. Read only by those that have coefficients per step."""
    model: str | None = None
    """Which denoiser (`dicache.models.identity`); None fits any."""
    placed: dict[tuple[str, str, torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )
    """Copies on the device of those that were used."""

    action = Action.CORRECT
    needs = 1
    pooled: ClassVar[bool] = False
    """Whether the mean over the tokens is all that is read of an input."""
    names: ClassVar[Mapping[str, str]]
    """A letter for every axis of each coefficient: T steps, G gaps, X channels of the input, C of the value, K rank."""

    @property
    def own_bytes(self) -> int:
        return sum(t.nbytes for site in self.coefficients.values() for name, t in site.items() if name in self.names)

    def check(self, denoiser: nn.Module, sites: Sequence[Site]) -> None:
        if self.model is not None and self.model != (here := identity(denoiser)):
            raise FittedError(
                f"these coefficients were fitted on another model: {self.model}, this is {here}. "
                "Fit again with dicache.fit."
            )
        missing = [site.path for site in sites if site.path not in self.coefficients]
        if missing:
            raise _unfitted(missing[0])

    def on_other_weights(self, change: str) -> str | None:
        if self.model is None:
            return None
        return f"{change}: the coefficients were fitted without that change."

    def guess(self, histories: Histories, target: Target) -> Tensor:
        value, feature = histories.outputs.values[0], target.feature
        anchor, target = tokens(value), target._replace(feature=None if feature is None else tokens(feature))
        if anchor.ndim != 3:
            raise UnsupportedModelError(
                f"{type(self).__name__} needs values of shape (rows, tokens, channels), or maps, but "
                f"{target.site or 'the denoiser'} gives {tuple(anchor.shape)}. Use other sites, or Reuse()."
            )
        self._check_channels(anchor, target)
        guess = self.corrected(anchor, histories, target)
        return guess if anchor is value else guess.mT.reshape(value.shape)

    def _check_channels(self, anchor: Tensor, target: Target) -> None:
        channels = (
            {"C": anchor.shape[2]} if target.feature is None else {"C": anchor.shape[2], "X": target.feature.shape[-1]}
        )
        for name, letters in self.names.items():
            fitted = dict(zip(letters, self._named(target.site)[name].shape, strict=True))
            if any(fitted.get(letter, n) != n for letter, n in channels.items()):
                raise FittedError(
                    f"{name} was fitted for {fitted} channels, but {target.site or 'the denoiser'} has {channels}. "
                    "Fit again with dicache.fit."
                )

    def _named(self, site: str) -> Mapping[str, Tensor]:
        if site not in self.coefficients:
            raise _unfitted(site)
        return self.coefficients[site]

    @abstractmethod
    def corrected(self, anchor: Tensor, histories: Histories, target: Target) -> Tensor:
        """The guess from the anchor, both (R, N, C)."""

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Reuse().growth(sigmas, sigma)

    def at(self, name: str, target: Target, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A coefficient of this site, on the device of `like` and in its type unless another is asked for."""
        key = (target.site, name, like.device, dtype or like.dtype)
        if key not in self.placed:
            self.placed[key] = self._named(target.site)[name].to(*key[2:])
        return self.placed[key]

    def step(self, sigma: float) -> int:
        """Which of the fitted steps has this sigma."""
        index = int(self.steps(torch.tensor(sigma, dtype=torch.float64)))
        if not abs(self.sigmas[index] - sigma) <= 1e-3 * max(abs(s) for s in self.sigmas):
            raise FittedError(
                f"the run is at {sigma:.4g} on its time axis, but coefficients were fitted for {len(self.sigmas)} "
                f"steps, the nearest at {self.sigmas[index]:.4g}. Run with the steps and scheduler of the fit, or fit "
                "again."
            )
        return index

    def steps(self, sigmas: Tensor) -> Tensor:
        """The nearest fitted step to each, any shape."""
        grid = torch.tensor(self.sigmas, dtype=torch.float64)
        return (sigmas[..., None] - grid).abs().nan_to_num().argmin(-1)


def _unfitted(site: str) -> FittedError:
    return FittedError(f"nothing was fitted for site {site!r}. Use the sites that it was fitted on (Fitted.sites).")


def moved(anchor: Tensor, histories: Histories, target: Target) -> Tensor:
    """x - x_0, (R, N, X): how far the input of the site has come since the value was computed."""
    if target.feature is None or target.feature.ndim != 3 or target.feature.shape[:2] != anchor.shape[:2]:
        shape = None if target.feature is None else tuple(target.feature.shape)
        raise UnsupportedModelError(
            f"the input of {target.site or 'the denoiser'} was seen as {shape}, which has not the rows and tokens of "
            f"its value, {tuple(anchor.shape)}. Use probe=SiteInput() with sites inside the denoiser, RawLatent() else."
        )
    return target.feature - tokens(histories.features.values[0])
