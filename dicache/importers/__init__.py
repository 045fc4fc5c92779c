"""Schedules that others published, as ours: one file a format. Each takes the file, the pipeline and the sites it is
for, and a calibration, whose steps it must fit; what the schedule loses there is measured.
"""
