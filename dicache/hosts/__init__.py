"""Attaching to a pipeline, reading it while it runs, and undoing all of it."""
