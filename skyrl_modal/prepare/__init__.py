"""Preparation of a run: from a RunSpec and a checkout to what a backend needs."""
