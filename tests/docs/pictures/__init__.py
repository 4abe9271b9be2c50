"""Pictures of the documentation and of README.md, made from real runs on the local backend: ``nox -s pictures``."""
