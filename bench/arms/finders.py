"""What finders are compared: each with its options, where it decides, and at how much work.

Finders of whole evaluations are asked for half and a third of the steps; those of sublayers and blocks for what these
can reach. Parts that a study asks further questions of have names of their own.
"""

from dataclasses import dataclass, replace

from dicache.finders.annealing import Annealing
from dicache.finders.base import Finder
from dicache.finders.block_caching import BlockCaching
from dicache.finders.dynamic_programming import DynamicProgramming
from dicache.finders.ecad import Ecad
from dicache.finders.fixed import FixedInterval
from dicache.finders.invardiff import InvarDiff
from dicache.finders.law_plan import Law
from dicache.finders.learning_to_cache import LearningToCache
from dicache.finders.nested import Nested
from dicache.finders.smoothcache import SmoothCache
from dicache.sites import Evaluation, Sites, Spans, Sublayers
from dicache.types import Action

LINE = Action.EXTRAPOLATE
COSTS = (0.51, 0.36)
"""Half and a third of the steps, and what runs around the blocks at every step."""
ANNEALING = Annealing(trials=40, rounds=0, fill=LINE)
ECAD = Ecad(generations=10, population=12, fill=LINE)
ORDER = Nested(fill=LINE)
ALONE: dict[str, Finder] = {"optimal, line": DynamicProgramming(fill=LINE), "annealing, line": ANNEALING}
ROUTER = LearningToCache(iterations=2)
ROUTED = (0.8, 0.66, 0.55)
NESTED = (0.8, 0.6, 0.4)


@dataclass(frozen=True)
class Request:
    name: str
    finder: Finder
    sites: Sites
    costs: tuple[float, ...] = COSTS


def requests() -> list[Request]:
    evaluations: list[tuple[str, Finder]] = [
        ("fixed interval", FixedInterval()),
        ("fixed interval, line", FixedInterval(LINE)),
        ("SmoothCache", SmoothCache()),
        ("SmoothCache, line", SmoothCache(fill=LINE)),
        ("Block Caching", BlockCaching()),
        ("InvarDiff", InvarDiff()),
        ("optimal, unweighted", DynamicProgramming(weighted=False)),
        ("optimal", DynamicProgramming()),
        ("optimal, line", DynamicProgramming(fill=LINE)),
        ("the law's way, line", Law()),
        ("nested, line", ORDER),
        ("annealing, line", ANNEALING),
        ("ECAD, line", ECAD),
    ]
    return [Request(name, finder, Evaluation()) for name, finder in evaluations] + [
        Request("nested by the law, line", replace(ORDER, prices="law"), Evaluation(), (*NESTED, *COSTS)),
        Request("fixed interval, sublayers", FixedInterval(), Sublayers(), (0.7,)),
        Request("SmoothCache, sublayers", SmoothCache(), Sublayers(), (0.7,)),
        Request("Block Caching, blocks", BlockCaching(), Spans(), (0.51,)),
    ]
