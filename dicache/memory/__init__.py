"""What is remembered between runs and processes: what text encoders gave for prompts."""
