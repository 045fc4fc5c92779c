"""What to put in place of an output that is not computed."""
