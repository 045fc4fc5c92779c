"""Measurements on the reference model."""
