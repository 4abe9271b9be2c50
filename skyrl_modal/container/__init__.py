"""What runs inside the container, on the image's own Python: the standard library only."""
