"""Run a command from a SkyRL checkout in a Modal GPU container, or locally through the same code."""
