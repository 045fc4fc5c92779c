"""Muon in float32, for matrices and for convolutions taken as matrices (out, in h w).

    M <- mu M + G,    W <- (1 - lr decay) W - lr 0.2 sqrt(max(out, in h w)) orthogonal(G + mu M)

`orthogonal` moves all singular values towards 1 by five steps of a quintic Newton-Schulz iteration (Jordan et al.
2024). `torch.optim.Muon` takes matrices only and iterates in bfloat16, which is slow on a CPU without units for it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class ConvolutionMuon(torch.optim.Optimizer):
    """For parameters of two or more dimensions; all but the first count as columns."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: dict[str, float]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.mul_(group["momentum"]).add_(parameter.grad)
        change = orthogonal((parameter.grad + group["momentum"] * momentum).flatten(1))
        step = group["lr"] * 0.2 * max(change.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change.reshape(parameter.shape), alpha=step)


def orthogonal(matrix: Tensor) -> Tensor:
    """(m, n) with all singular values near 1.

    The polynomials of all steps are multiplied up on the smaller Gram matrix, which a wide matrix is many times as wide
    as, and applied once.
    """
    a, b, c = QUINTIC
    turned = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if turned else matrix
    x = x / (x.norm() + 1e-7)
    one = torch.eye(len(x))
    gram, product = x @ x.T, one
    for _ in range(ITERATIONS):
        step = torch.addmm(a * one + b * gram, gram, gram, alpha=c)
        product, gram = step @ product, step @ gram @ step
    out = product @ x
    return out.T if turned else out
