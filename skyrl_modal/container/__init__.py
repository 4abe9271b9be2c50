"""Code that runs inside the container, on the image's own Python. Standard library only."""
