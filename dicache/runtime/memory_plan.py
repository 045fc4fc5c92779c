"""How much a run will remember, worked out from its first step and bounded by a limit.

    bytes = sum over sites and branches of  depth * (value + noise + feature)  +  what estimator and approximators keep

`depth` is how many exact values the deepest approximator makes use of. Where that is over `Config.memory_limit`,
nothing is kept of the first step; then first the depth is lowered, so that approximators of lower order, or with fewer
values, are left, and then sites are given up, those first that save the fewest MACs for a byte. Both are said in the
report.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from dicache.approximators.base import Histories
from dicache.config import Config
from dicache.runtime.run_state import Run, SiteState
from dicache.tensors import history


class Size(NamedTuple):
    """Bytes of one exact value of a site, over all branches, and of what goes with it."""

    value: int
    feature: int
    macs: float


class MemoryPlan:
    config: Config
    note: Callable[[str], None]
    latent: int

    def __init__(self, config: Config, note: Callable[[str], None]) -> None:
        self.config, self.note = config, note
        self.fixed: int = sum(approximator.own_bytes for approximator in config.approximators)
        self.begin_run()

    def begin_run(self) -> None:
        self.sizes: dict[int, Size] = {}
        self.seen: set[tuple[int, str]] = set()
        self.depths: dict[int, int] | None = None if self.config.memory_limit is not None else {}
        self.planned: int | None = None
        self.latent = 0

    def depth(self, state: SiteState) -> int:
        """How many exact values are kept of a site: none before the plan where there is a limit."""
        if self.depths is None:
            return 0
        return self.depths.get(state.site.index, self.config.depth)

    def nothing(self, state: SiteState, rows: int) -> Histories:
        depth = self.depth(state)
        return Histories(*(history.empty(n, rows) for n in (depth, self._features(depth), depth)))

    def _features(self, depth: int) -> int:
        """How many of the probe's features are kept beside `depth` values."""
        return self.config.feature_depth if depth == self.config.depth else min(self.config.feature_depth, depth)

    def saw(self, state: SiteState, branch: str, value: Tensor, feature: Tensor | None, noise: Tensor | None) -> None:
        """A site gave a value in the run's first step."""
        if self.planned is not None or (state.site.index, branch) in self.seen:
            return
        self.seen.add((state.site.index, branch))
        old = self.sizes.get(state.site.index, Size(0, 0, 0.0))
        own = value.nbytes + (0 if noise is None else noise.nbytes)
        self.sizes[state.site.index] = old._replace(
            value=old.value + own, feature=old.feature + (0 if feature is None else feature.nbytes)
        )

    def plan(self, run: Run, macs: Sequence[float]) -> None:
        """After the first step, which is the first to show every branch."""
        if self.planned is not None or not self.sizes:
            return
        self.sizes = {state: size._replace(macs=macs[state]) for state, size in self.sizes.items()}
        self.latent = run.latent[: run.samples].nbytes
        limit = self.config.memory_limit
        depths = dict.fromkeys(self.sizes, self.config.depth)
        if limit is not None and self._total(depths) > limit:
            depths = self._lowered(limit)
        self.depths, self.planned = depths, self._total(depths)
        for state in run.states:
            state.depth = depths.get(state.site.index, self.config.depth)
            state.histories = {} if limit is not None else state.histories
            if not state.depth:
                state.estimator = self.config.estimator.init(run.samples, len(self.config.approximators))

    def _total(self, depths: dict[int, int]) -> int:
        """Bytes; a site of which nothing is kept has no estimator either."""
        total = self.fixed if any(depths.values()) else 0
        for state, depth in depths.items():
            if depth:
                size, branches = self.sizes[state], max(1, len({b for p, b in self.seen if p == state}))
                total += depth * size.value + self._features(depth) * size.feature
                total += self.config.estimator.own_bytes(size.feature // branches, size.value // branches, self.latent)
        return total

    def _lowered(self, limit: int) -> dict[int, int]:
        orders = sorted({n for a in self.config.approximators for n in (a.needs, a.history_depth)})
        for depth in reversed(orders):
            depths = dict.fromkeys(self.sizes, depth)
            if self._total(depths) <= limit:
                self.note(f"memory_limit: {depth} of {self.config.depth} exact values are kept of every site.")
                return depths
        depths = dict.fromkeys(self.sizes, orders[0])
        worth = sorted(self.sizes, key=lambda state: self.sizes[state].macs / max(1, self.sizes[state].value))
        for state in worth:
            if self._total(depths) <= limit:
                break
            depths[state] = 0
        cached = sum(depth > 0 for depth in depths.values())
        self.note(f"memory_limit: {cached} of {len(depths)} sites are cached, with {orders[0]} exact value each.")
        return depths
