"""Schedules that others published, as ours: one file a format. Each takes the file, the pipeline and the sites it is
for, and a calibration, whose steps it must fit; what the schedule loses there is measured.
"""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.importers import ecad as ecad
    from dicache.importers import l2c as l2c
    from dicache.importers import smoothcache as smoothcache

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {},
    packages=(
        "ecad",
        "l2c",
        "smoothcache",
    ),
)
