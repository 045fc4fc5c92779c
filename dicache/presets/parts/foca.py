"""FoCa (arXiv 2508.16211): the value as the solution of an ODE, a BDF2 predictor and Heun's corrector.

    predictor   v^ = v_0 + tau d_01,                                        d_ij the slope between values i and j
    slopes      d_0 = d_01 + (d_01 - d_12) D_0 / (D_0 + D_1)                BDF2's at sigma_0, from three values
                d^  = d_01                                                  BDF2's on the predicted line
    corrector   v ~ v_0 + (tau / 2) (d_0 + d^)                              Heun

with tau = sigma - sigma_0, D_i = sigma_i - sigma_{i+1}. The paper's predictor 2 F_k - F_{k-1}, run step by step on its
own results, is the line v^; here it is drawn at once, along true time and from exact values only. Its code was never
released; how it damps horizons beyond three steps is not known here and left out. Exact on lines.
"""

from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target, per_row
from dicache.approximators.linear import Extrapolate
from dicache.approximators.taylor import until
from dicache.types import Action, Rows


class FoCa(Approximator):
    action = Action.EXTRAPOLATE
    over_ranks = True
    needs = 3

    def guess(self, histories: Histories, target: Target) -> Tensor:
        (v0, v1, v2), sigmas = histories.outputs.values[:3], histories.outputs.sigmas
        ahead, near, far = target.sigma - sigmas[0], sigmas[0] - sigmas[1], sigmas[1] - sigmas[2]
        bend = ahead / 2 * near / (near + far)
        first, second = (weight.nan_to_num(0.0, 0.0, 0.0) for weight in ((ahead + bend) / near, bend / far))
        return v0 + (v0 - v1) * per_row(first, v0) - (v1 - v2) * per_row(second, v0)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return until(sigmas, self.needs, Extrapolate().growth(sigmas, sigma))
