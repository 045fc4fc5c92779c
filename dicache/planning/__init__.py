"""What is known before a run: the law of errors, the plans that it makes, the budget they keep."""
