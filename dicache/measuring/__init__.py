"""What needs a pipeline and prompts: runs that are recorded, and what is learned from them."""
