"""What is typical of diffusion models: how fast a denoiser's output turns along the run, and how much of an error made
there is left at the end.

With lambda half the logarithm of signal over noise, an output extrapolated to order 1 over tau (anchors D apart, all in
lambda) is wrong by about

    k |tau (tau + D)|,     k = exp(-1.30 - 0.28 lambda)        relative L2, the median over captions

and of an error in the latent there remains at the end the share

    w = exp(-1.10 + 0.38 lambda), at most 1:

the flow forgets early errors. Both were measured on the reference model and agree between 20 and 28 steps and between
even and shifted time grids (residual spread of log k 0.28, of log k w 0.43). On another model they are where learning
starts from, not what it ends with: every sample's own amplitude is learned while it runs.
"""

import math

from dicache.types import Step

KINK = 1.5


def turning(balance: float) -> float:
    """k at lambda = `balance`."""
    return math.exp(-0.95 - 0.52 * math.tanh(1.2 * (balance + 0.2)))


def remaining(balance: float) -> float:
    """w at lambda = `balance`."""
    return min(1.0, math.exp(-2.4 + 0.1 * balance) / turning(balance))


def kink(balance: float) -> float:
    """c at lambda = `balance`."""
    return KINK * math.exp(-(((balance + 0.75) / 0.55) ** 2))


def weight(step: Step) -> float:
    """w at a step; 1 where nothing is known of the course."""
    return 1.0 if step.course is None else remaining(step.course.balances[step.index])
