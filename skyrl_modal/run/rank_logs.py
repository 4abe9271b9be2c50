"""The logs of a rank: its supervisor's messages and Ray's files, in one stream."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from skyrl_modal.backends.output_tail import last_lines_of
from skyrl_modal.protocol.run_folder import RAY_FOLDER, RAY_START_LOG, SUPERVISOR_LOG
from skyrl_modal.views.text import escape_controls

if TYPE_CHECKING:
    from skyrl_modal.backends import Execution

#: Shown first: the supervisor's messages, and the output of ``ray start``.
_FIRST_LOGS = (SUPERVISOR_LOG, RAY_START_LOG)

# Ray repeats its internal state every minute. The raylet marks each line; the other processes begin with a line of
# their log, followed by lines without a time. Seen in Ray 2.60.
_STATE_FILE = re.compile(r"debug_state\w*\.txt")
_STATE_LINE = re.compile(rb"^[^\n]*\[state-dump\][^\n]*(?:\n|\Z)", re.MULTILINE)
_STATE_BLOCK = re.compile(
    rb"^\[\d{4}-\d\d-\d\d [^\n]*(?:Debug state|Event stats):[ \t]*(?:\n|\Z)(?:(?!\[\d{4}-\d\d-\d\d )[^\n]*(?:\n|\Z))*",
    re.MULTILINE,
)


def read_rank_logs(execution: Execution, rank: int, tail: int | None = None) -> Iterator[bytes]:
    """Yield the files of a rank's folder, each after a line with its name and without Ray's dumps of its state.

    Args:
        execution: The run.
        rank: The rank.
        tail: Number of lines to return, from the end; None for all.

    Raises:
        FileNotFoundError: The rank has stored no logs.
    """
    files = list(execution.read_files(f"{RAY_FOLDER}/{rank}"))
    files.sort(key=lambda item: (item[0] not in _FIRST_LOGS, item[0] != SUPERVISOR_LOG, item[0]))
    pieces = []
    for name, content in files:
        shown = without_state_dumps(name, content)
        if shown:
            header = f"==> {escape_controls(name)} <==\n".encode("utf-8", "backslashreplace")
            pieces.append(header + shown + (b"" if shown.endswith(b"\n") else b"\n"))
    if tail is None:
        yield from pieces
        return
    kept: list[bytes] = []
    for piece in reversed(pieces):
        kept.append(last_lines_of(piece, tail))
        tail -= kept[-1].count(b"\n")
    yield from reversed(kept)


def without_state_dumps(name: str, content: bytes) -> bytes:
    r"""Return the content of a log of Ray without the dumps of its internal state.

    Example:
        >>> without_state_dumps("raylet.out", b"[2026-01-01 00:00:00,000 I] started\n[state-dump] NodeManager:\n")
        b'[2026-01-01 00:00:00,000 I] started\n'
    """
    if _STATE_FILE.fullmatch(posixpath.basename(name)):
        return b""
    return _STATE_BLOCK.sub(b"", _STATE_LINE.sub(b"", content))
