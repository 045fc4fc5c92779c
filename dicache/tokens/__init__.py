"""Running some tokens of a sample against stored keys and values of the rest (`dicache.sites.Tokens`)."""
