"""Shell commands that tests run."""

from __future__ import annotations


def saving_command(*, signals: str = "INT TERM", path: str = "", exit_code: int = 3) -> str:
    """Return a command that prints "up" and waits. When it is stopped, it prints "saving" and exits.

    Args:
        signals: Names of the signals that it handles.
        path: File that it then writes, with the text "yes"; empty for none.
        exit_code: Exit code of the command.
    """
    save = f"echo saving; echo yes > {path}" if path else "echo saving"
    return f"trap '{save}; exit {exit_code}' {signals}; echo up; sleep 600 & wait; wait"
