"""Fuzz tests: every parser of bytes that others write returns a value or raises its documented error."""
