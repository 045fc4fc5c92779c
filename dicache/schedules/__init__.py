"""Tables of actions that were found before a run: their types, their file, the rule that follows them."""
