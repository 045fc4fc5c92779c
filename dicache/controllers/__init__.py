"""Who may skip, and when."""
