"""How the bench's own models were trained."""
