"""What an output that is not computed will be wrong by."""
