"""Denoisers that several ranks run together: context parallelism, sharded weights."""
