"""What is drawn with: models, and the settings they draw in."""
