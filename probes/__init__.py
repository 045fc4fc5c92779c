"""What to look at before deciding."""
