"""dicache makes diffusion inference faster by not computing what it can predict.

with dicache.enable(pipe, error_budget=0.05) as cache:
    images = pipe(prompts).images
print(cache.report())
"""

from typing import TYPE_CHECKING

from dicache import _checkout, _moved
from dicache._lazy import lazy
from dicache._version import __version__ as __version__

if TYPE_CHECKING:
    from dicache import finders as finders
    from dicache import presets as presets
    from dicache import ray as ray
    from dicache import reference as reference
    from dicache import serve as serve
    from dicache.api import disable as disable
    from dicache.api import enable as enable
    from dicache.approximators.fitted.coefficients import Fitted as Fitted
    from dicache.cache import Cache as Cache
    from dicache.config import Config as Config
    from dicache.many.generate import Generated as Generated
    from dicache.many.generate import generate as generate
    from dicache.measuring.calibrate import calibrate as calibrate
    from dicache.memory.store import Memory as Memory
    from dicache.models.family import Family as Family
    from dicache.promise.metrics import Psnr as Psnr
    from dicache.promise.metrics import Ssim as Ssim
    from dicache.promise.metrics import Within as Within
    from dicache.promise.profile import Profile as Profile
    from dicache.promise.profile import load_profile as load_profile
    from dicache.ranks.branches import BranchRanks as BranchRanks
    from dicache.regressions.fit_coefficients import fit as fit
    from dicache.reporting.callbacks import StepReport as StepReport
    from dicache.reporting.report import Report as Report
    from dicache.schedules.pareto import ParetoSet as ParetoSet
    from dicache.schedules.schedule import Schedule as Schedule
    from dicache.tuning.sampler import Sampler as Sampler
    from dicache.tuning.tune import tune as tune

_checkout.serve_sibling_folders()
_moved.name_old_modules()
__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache._version": ("__version__",),
        "dicache.api": ("disable", "enable"),
        "dicache.approximators.fitted.coefficients": ("Fitted",),
        "dicache.cache": ("Cache",),
        "dicache.config": ("Config",),
        "dicache.many.generate": ("Generated", "generate"),
        "dicache.measuring.calibrate": ("calibrate",),
        "dicache.regressions.fit_coefficients": ("fit",),
        "dicache.memory.store": ("Memory",),
        "dicache.models.family": ("Family",),
        "dicache.ranks.branches": ("BranchRanks",),
        "dicache.promise.metrics": ("Psnr", "Ssim", "Within"),
        "dicache.promise.profile": ("Profile", "load_profile"),
        "dicache.reporting.callbacks": ("StepReport",),
        "dicache.reporting.report": ("Report",),
        "dicache.schedules.pareto": ("ParetoSet",),
        "dicache.schedules.schedule": ("Schedule",),
        "dicache.tuning.sampler": ("Sampler",),
        "dicache.tuning.tune": ("tune",),
    },
    packages=("finders", "presets", "ray", "reference", "serve"),
)
