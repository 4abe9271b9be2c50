"""Rules about the programs that a command starts. Each yields findings with one code."""
