"""Ways to find a schedule before the run. Each is one file with one class; nothing is registered.

finder.find(pipe, sites, calibration, budget=..., cost=..., seed=...) -> Schedule | ParetoSet
"""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.finders.annealing import Annealing as Annealing
    from dicache.finders.base import Finder as Finder
    from dicache.finders.block_caching import BlockCaching as BlockCaching
    from dicache.finders.dynamic_programming import DynamicProgramming as DynamicProgramming
    from dicache.finders.eb_cache import EBCache as EBCache
    from dicache.finders.ecad import Ecad as Ecad
    from dicache.finders.fixed import FixedInterval as FixedInterval
    from dicache.finders.invardiff import InvarDiff as InvarDiff
    from dicache.finders.law_plan import Law as Law
    from dicache.finders.learning_to_cache import LearningToCache as LearningToCache
    from dicache.finders.multistep import Multistep as Multistep
    from dicache.finders.nested import Nested as Nested
    from dicache.finders.smoothcache import SmoothCache as SmoothCache
    from dicache.finders.stages import Stages as Stages
    from dicache.finders.t_gate import TGate as TGate
    from dicache.finders.windows import Windows as Windows
    from dicache.measuring.schedule_measurements import Calibration as Calibration
    from dicache.schedules.objective import Objective as Objective

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.finders.annealing": ("Annealing",),
        "dicache.finders.base": ("Finder",),
        "dicache.finders.block_caching": ("BlockCaching",),
        "dicache.finders.dynamic_programming": ("DynamicProgramming",),
        "dicache.finders.eb_cache": ("EBCache",),
        "dicache.finders.ecad": ("Ecad",),
        "dicache.finders.fixed": ("FixedInterval",),
        "dicache.finders.invardiff": ("InvarDiff",),
        "dicache.finders.law_plan": ("Law",),
        "dicache.finders.learning_to_cache": ("LearningToCache",),
        "dicache.finders.multistep": ("Multistep",),
        "dicache.finders.nested": ("Nested",),
        "dicache.finders.smoothcache": ("SmoothCache",),
        "dicache.finders.stages": ("Stages",),
        "dicache.finders.t_gate": ("TGate",),
        "dicache.finders.windows": ("Windows",),
        "dicache.measuring.schedule_measurements": ("Calibration",),
        "dicache.schedules.objective": ("Objective",),
    },
)
