"""DiCache's trajectory alignment (arXiv 2508.17356): the probe says how far along the line to go.

    gamma = clip(|P - P_1|_1 / |P_0 - P_1|_1, 1, limit),    v ~ v_1 + gamma (v_0 - v_1)

P is the probe's feature now, P_0 and P_1 those of the last two computed steps. As published, the clip keeps it from
interpolating and from going more than `limit - 1` past the newest value. Where the probe stood still (0 / 0) gamma is
1, that is plain reuse. `signed` is by how much of the probe's last way it went on, or back, in least squares:

    gamma = clip(<P - P_1, P_0 - P_1> / |P_0 - P_1|^2, 0, limit)

Of a probe of several features (`dicache.probes.StreamAndAdded`) `part` says which is P.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dicache.approximators.base import Approximator, Histories, Target, per_row
from dicache.approximators.linear import Extrapolate
from dicache.ranks.sums import Pair
from dicache.types import Action, Rows


@dataclass(frozen=True)
class Align(Approximator):
    limit: float = 1.5
    signed: bool = False
    part: int | None = None

    action = Action.ALIGN
    needs = 2
    reads_feature = True
    over_ranks = True

    def pairs(self, histories: Histories, target: Target) -> Sequence[Pair]:
        assert target.feature is not None, "alignment needs a probe; Config checks this"
        feature, newest, before = (self._part(each) for each in (target.feature, *histories.features.values[:2]))
        return ((feature, before), (newest, before), (feature, newest))[: 2 + self.signed]

    def guess(self, histories: Histories, target: Target) -> Tensor:
        newest, before = histories.outputs.values[:2]
        sums = [target.sums.of(*pair) for pair in self.pairs(histories, target)]
        if self.signed:
            travelled, spacing, apart = (each[:, 2].double() for each in sums)
            gamma = ((travelled + spacing - apart) / (2 * spacing)).nan_to_num(1.0, self.limit, 0.0)
        else:
            travelled, spacing = (each[:, 0] for each in sums)
            gamma = (travelled / spacing).nan_to_num(1.0, self.limit, 1.0)
        gamma = gamma.clamp(0.0 if self.signed else 1.0, self.limit)
        return before + (newest - before) * per_row(gamma, newest)

    def _part(self, feature: Tensor) -> Tensor:
        return feature if self.part is None else feature[:, self.part]

    def growth(self, sigmas: Tensor, sigma: float) -> Rows:
        return Extrapolate().growth(sigmas, sigma)
