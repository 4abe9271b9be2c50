"""From a RunSpec and a checkout to what a backend needs."""
