"""Rendering of plain rows as text. The only package that imports rich."""
