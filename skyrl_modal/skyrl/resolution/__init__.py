"""What a command starts: found by executing its scripts in a sandbox that has no trainer, or by reading their text."""
