"""Ways to find a schedule before the run. Each is one file with one class; nothing is registered.

finder.find(pipe, sites, calibration, budget=..., cost=..., seed=...) -> Schedule | ParetoSet
"""
