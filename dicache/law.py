"""What is typical of diffusion models: how fast a denoiser's output turns along the run.

With lambda half the logarithm of signal over noise, an output extrapolated to order 1 over tau from anchors D apart,
all three in lambda, is wrong by about

    k(lambda) |tau (tau + D)|,     k = exp(-0.95 - 0.52 tanh(1.2 (lambda + 0.2)))      relative L2

and two fifths of an error of the latent remain at its end. k was measured on the reference model (median over 48
captions, residual spread of its logarithm 0.2) and is one curve for 20 and 28 steps and for even and shifted time
grids: in lambda, models turn nearly evenly, three times faster while the layout is decided than later. What remains
varies from 0.2 to 1 along the run; no weight that follows it did better than the constant. On another model these are
where learning starts from, not where it ends: every sample's own amplitude is learned while it runs.
"""

import math

REMAINS = 0.4
"""Share of an error of the latent that is left at the end."""


def turning(balance: float) -> float:
    """k at lambda = `balance`."""
    return math.exp(-0.95 - 0.52 * math.tanh(1.2 * (balance + 0.2)))
