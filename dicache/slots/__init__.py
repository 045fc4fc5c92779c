"""Many requests at once, each at a step of its own: what an engine with continuous batching needs."""
