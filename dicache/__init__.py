"""dicache makes diffusion inference faster by not computing what it can predict.

with dicache.enable(pipe, error_budget=0.05) as cache:
    images = pipe(prompts).images
print(cache.report())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dicache import _checkout

if TYPE_CHECKING:
    from dicache.api import Cache, enable
    from dicache.approximators.fitted.coefficients import Fitted
    from dicache.config import Config
    from dicache.measuring.calibrate import calibrate
    from dicache.measuring.fit_coefficients import fit
    from dicache.models.family import Family
    from dicache.promise.metrics import Psnr, Ssim, Within
    from dicache.promise.profile import Profile, load_profile
    from dicache.reporting.report import Report
    from dicache.schedules.schedule import ParetoSet, Schedule

__all__ = [
    "Cache",
    "Config",
    "Family",
    "Fitted",
    "ParetoSet",
    "Profile",
    "Psnr",
    "Report",
    "Schedule",
    "Ssim",
    "Within",
    "__version__",
    "calibrate",
    "enable",
    "fit",
    "load_profile",
]
__version__ = "0.1.0"

_checkout.serve_sibling_folders()
_HOME = {
    "Cache": "dicache.api",
    "Config": "dicache.config",
    "Family": "dicache.models.family",
    "Fitted": "dicache.approximators.fitted.coefficients",
    "ParetoSet": "dicache.schedules.schedule",
    "Profile": "dicache.promise.profile",
    "Psnr": "dicache.promise.metrics",
    "Report": "dicache.reporting.report",
    "Schedule": "dicache.schedules.schedule",
    "Ssim": "dicache.promise.metrics",
    "Within": "dicache.promise.metrics",
    "calibrate": "dicache.measuring.calibrate",
    "enable": "dicache.api",
    "fit": "dicache.measuring.fit_coefficients",
    "load_profile": "dicache.promise.profile",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import on first use: `import dicache` alone loads neither diffusers nor torch."""
    if name in ("presets", "reference"):
        return import_module(f"dicache.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'dicache' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
