"""Fitting what stands in for a model on runs that were watched: slopes, gates, scores."""
