"""All arms on all models of the bench: `python -m dicache.bench zoo`."""
