"""The version, in the one place that setup.py and all files of coefficients and schedules take it from."""

__version__ = "0.1.0"
