"""What a report says below its table also goes to `logging.getLogger("dicache")`, once when a run is over: as a warning
where a budget was passed or a promise does not hold, else as information. Nothing is printed unless the user asks
`logging` for it.
"""

import logging

from dicache.reporting.notes import Alarm
from dicache.reporting.report import Report

LOGGER = logging.getLogger("dicache")
LOGGER.addHandler(logging.NullHandler())


def log(report: Report) -> None:
    for text in report.warnings:
        level = logging.WARNING if isinstance(text, Alarm) else logging.INFO
        LOGGER.log(level, "%s: %s", report.setting.model, text)
