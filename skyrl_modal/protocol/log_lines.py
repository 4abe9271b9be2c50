"""The prefix of the launcher's messages, which separates them from other text on the same stream.

A message that reports why a run failed names the cause in its prefix: ``skyrl-modal (ray_exited) | ...``. On Modal,
text is the only way from the container to its caller. A new state of the run is a line too:
``skyrl-modal state | running, attempt 1``.
"""

from __future__ import annotations

import re

from skyrl_modal.protocol.state import FailureCause, RunState

LINE_PREFIX = "skyrl-modal | "
STATE_PREFIX = "skyrl-modal state | "

_STATE = r"([a-z_]+)(?:, attempt ([0-9]{1,9}))?"
_LINE = r"(?s)skyrl-modal (?:\(([a-z_]+)\) )?\| (.*)"


def prefixed(text: str, cause: FailureCause | None = None) -> str:
    r"""Return a text with the prefix before each line, and a newline after each.

    Args:
        text: One or more lines.
        cause: The cause of failure that the text reports; None if it reports none.

    Example:
        >>> prefixed("two\nlines")
        'skyrl-modal | two\nskyrl-modal | lines\n'
        >>> prefixed("Ray exited", FailureCause.RAY_EXITED)
        'skyrl-modal (ray_exited) | Ray exited\n'
    """
    prefix = LINE_PREFIX if cause is None else f"skyrl-modal ({cause}) | "
    return "".join(f"{prefix}{line}\n" for line in text.splitlines() or [""])


def parse_line(line: str) -> tuple[str, FailureCause | None]:
    """Split a line that ``prefixed`` made into text and cause. A line without the prefix is returned unchanged.

    Example:
        >>> parse_line("skyrl-modal (ray_exited) | Ray exited")
        ('Ray exited', <FailureCause.RAY_EXITED: 'ray_exited'>)
        >>> parse_line("Traceback (most recent call last):")
        ('Traceback (most recent call last):', None)
    """
    match = re.fullmatch(_LINE, line)
    if match is None:
        return line, None
    return match[2], None if match[1] is None else FailureCause(match[1])


def state_line(state: RunState, attempt: int) -> str:
    r"""Return the line that reports a new state of the run.

    Args:
        state: The state.
        attempt: Number of attempts that were started.

    Example:
        >>> state_line(RunState.RUNNING, 1)
        'skyrl-modal state | running, attempt 1\n'
    """
    return f"{STATE_PREFIX}{state}, attempt {attempt}\n"


def parse_state_line(line: str) -> tuple[RunState, int] | None:
    """Return the state and the attempt that a line without its newline reports; None if it reports none.

    Example:
        >>> parse_state_line("skyrl-modal state | running, attempt 2"), parse_state_line("skyrl-modal | running")
        ((<RunState.RUNNING: 'running'>, 2), None)
    """
    match = re.fullmatch(_STATE, line.removeprefix(STATE_PREFIX)) if line.startswith(STATE_PREFIX) else None
    return None if match is None else (RunState(match[1]), int(match[2] or 0))
