"""What is drawn for its own sake, of many prompts at once; nothing is measured."""
