"""The command line, `dicache`: one file a group of commands."""
