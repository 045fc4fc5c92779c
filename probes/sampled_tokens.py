"""Every k-th token of another probe's feature: a relative change needs no more, and the history keeps no more."""

from dataclasses import dataclass

from torch import Tensor

from dicache.probes.base import Probe, View


@dataclass(frozen=True)
class SampledTokens(Probe):
    """Tokens 0, `every`, 2 `every`, .. of what `inner` measures: (R, N, C) -> (R, ceil(N / every), C)."""

    inner: Probe
    every: int = 4

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"SampledTokens(every={self.every}): expected 1 (all tokens) or more.")

    @property
    def depth(self) -> int:  # type: ignore[override]
        return self.inner.depth

    def __call__(self, view: View) -> Tensor | None:
        feature = self.inner(view)
        return None if feature is None else feature[:, :: self.every].clone()
