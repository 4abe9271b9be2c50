"""Configuration: fields of a launcher from arguments, the environment and files, each with its origin."""
