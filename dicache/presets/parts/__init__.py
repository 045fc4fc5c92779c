"""What only one published method is made of: a rule, an estimate, a guess or a signal of its own."""
