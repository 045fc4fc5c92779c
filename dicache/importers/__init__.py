"""Schedules that others published, as ours: one file a format. Each takes the file, the pipeline and the sites it is
for, and a calibration, whose steps it must fit; what the schedule loses there is measured.

read_smoothcache(path, pipe, sites, calibration) -> Schedule, and so the others
"""

from typing import TYPE_CHECKING

from dicache._lazy import lazy

if TYPE_CHECKING:
    from dicache.importers.ecad import read_ecad as read_ecad
    from dicache.importers.l2c import read_l2c as read_l2c
    from dicache.importers.smoothcache import read_smoothcache as read_smoothcache
    from dicache.measuring.schedule_measurements import Calibration as Calibration

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "dicache.importers.ecad": ("read_ecad",),
        "dicache.importers.l2c": ("read_l2c",),
        "dicache.importers.smoothcache": ("read_smoothcache",),
        "dicache.measuring.schedule_measurements": ("Calibration",),
    },
)
