"""Trajectory alignment with a sign: how far the probe went along its last computed stretch, by least squares.

    c = <P - P_0, P_0 - P_1> / |P_0 - P_1|^2,        kappa = cos^2 of the two,        v ~ v_0 + kappa c (v_0 - v_1)

P is the probe's feature now, P_0 and P_1 those of the last two computed steps. Unlike DiCache's ratio of norms
(`dicache.approximators.alignment`) c can turn back and knows no limit; kappa, the share of the probe's movement that
lies on the line, shrinks the guess to plain reuse where the probe left it. On one line (kappa = 1, forward, up to its
limit) both are the same. Where the probe stood still c is 0.
"""

from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target, per_row
from dicache.approximators.linear import Extrapolate
from dicache.tensors.norms import alignment
from dicache.types import Action, Rows


class LeastSquaresAlign(Approximator):
    action = Action.ALIGN
    needs = 2
    reads_feature = True

    def guess(self, histories: Histories, target: Target) -> Tensor:
        assert target.feature is not None, "alignment needs a probe"
        newest, before = histories.outputs.values[:2]
        latest, earlier = histories.features.values[:2]
        way = alignment(target.feature - latest, latest - earlier)
        factor = way.coefficient * way.trust
        return newest + (newest - before) * per_row(factor.nan_to_num(0.0, 0.0, 0.0), newest)

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Extrapolate().growth(sigmas, sigma)
