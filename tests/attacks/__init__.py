"""Attacks on the package, and the promises that each tests: ``nox -s attack``."""
