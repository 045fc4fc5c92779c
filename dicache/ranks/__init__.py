"""Ranks that hold parts of the same samples, and must decide alike."""
