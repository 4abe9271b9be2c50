"""Files on volumes, as a caller sees them: lists, reads, removes and copies them, by their paths in the container."""
