"""Runs as their caller sees them."""
