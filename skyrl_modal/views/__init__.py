"""Rendering: rows in, text out."""
