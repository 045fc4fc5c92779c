"""Hold what the denoiser adds to its input, not its output (EasyCache, arXiv 2507.02860): where the probe shows the
input moved, the guess moves along.

    v(sigma) ~ v_0 + (p - p_0),        error ~ |tau|

p is the probe's feature, which must have the output's shape: `RawLatent()` gives x + (v_0 - x_0).
"""

from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target
from dicache.approximators.hold import Reuse
from dicache.errors import UnsupportedModelError
from dicache.types import Action, Rows


class ReuseResidual(Approximator):
    """Raises UnsupportedModelError where the feature has not the output's shape."""

    action = Action.REUSE
    needs = 1
    reads_feature = True

    def guess(self, histories: Histories, target: Target) -> Tensor:
        output = histories.outputs.values[0]
        if target.feature is None or target.feature.shape != output.shape:
            shape = None if target.feature is None else tuple(target.feature.shape)
            raise UnsupportedModelError(
                f"ReuseResidual needs a feature shaped like the output, {tuple(output.shape)}, and got {shape}. "
                "Use probe=RawLatent() with a denoiser whose output has its input's shape, or Reuse()."
            )
        return output + (target.feature - histories.features.values[0])

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Reuse().growth(sigmas, sigma)
