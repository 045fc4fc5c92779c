"""Hold what the denoiser adds to its input, not its output (EasyCache, arXiv 2507.02860): where the probe shows the
input moved, the guess moves along.

    v(sigma) ~ v_0 + (p - p_0),        error ~ |tau|

p is the probe's feature, which must have the output's shape: `RawLatent()` gives x + (v_0 - x_0).
"""

from torch import Tensor

from dicache.approximators.base import Approximator, Now, Past
from dicache.approximators.hold import Reuse
from dicache.errors import UnsupportedModelError
from dicache.types import Action, Rows


class ReuseResidual(Approximator):
    """Raises UnsupportedModelError where the feature has not the output's shape."""

    action = Action.REUSE
    needs = 1
    reads_feature = True

    def guess(self, past: Past, now: Now) -> Tensor:
        output = past.outputs.values[0]
        if now.feature is None or now.feature.shape != output.shape:
            shape = None if now.feature is None else tuple(now.feature.shape)
            raise UnsupportedModelError(
                f"ReuseResidual needs a feature shaped like the output, {tuple(output.shape)}, and got {shape}. "
                "Use probe=RawLatent() with a denoiser whose output has its input's shape, or Reuse()."
            )
        return output + (now.feature - past.features.values[0])

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Reuse().growth(sigmas, sigma)
