"""What a person sees: our own lines, on standard error, so that standard output is the command's alone."""

from __future__ import annotations

import sys

#: What our own lines begin with.
PREFIX = "skyrl-modal | "


class Lines:
    """A reporter that writes to standard error, whatever that is at the moment (a notebook replaces it)."""

    def line(self, text: str) -> None:
        """Write one line, or several, each with the prefix."""
        for part in text.splitlines() or [""]:
            print(f"{PREFIX}{part}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Write a warning."""
        self.line(f"warning: {text}")


class Quiet:
    """A reporter that drops everything."""

    def line(self, text: str) -> None:
        """Drop it."""

    def warn(self, text: str) -> None:
        """Drop it."""
