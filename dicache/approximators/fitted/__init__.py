"""Approximators whose coefficients are fitted on prompts before a run."""
