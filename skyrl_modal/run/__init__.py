"""Runs as their caller sees them: handle, result, index of runs, foreground and batch runs."""
