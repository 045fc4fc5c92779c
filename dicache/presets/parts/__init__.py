"""What one published method alone is made of, a file for each: a rule, an estimate, a guess, a signal of its own."""
