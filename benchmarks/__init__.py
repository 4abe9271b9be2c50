"""Benchmarks: ``nox -s bench`` compares the package with other tools, and ``nox -s soak`` looks for leaks."""
