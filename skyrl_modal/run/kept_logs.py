"""The kept logs of a run: those of its supervisors, of Ray, SkyRL and the machine, from every rank and attempt."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence

from attrs import field, frozen

from skyrl_modal.backends import Execution
from skyrl_modal.backends.output_tail import last_lines_of
from skyrl_modal.errors import translate_system_errors
from skyrl_modal.protocol.kept_logs import (
    RAY_LOGS,
    RAY_START_LOG,
    is_state_file,
    parse_log_path,
    start_folder_name,
    without_state_dumps,
)
from skyrl_modal.protocol.run_folder import LOGS_FOLDER, SUPERVISOR_LOG
from skyrl_modal.views.text import escape_controls


@frozen(kw_only=True)
class KeptLog:
    """A log that is kept in a run's folder, as it was when it was listed.

    Attributes:
        rank: The rank that has written it.
        attempt: Number of the attempt, from 1; None for the messages of the supervisor.
        start: Number of the start of this attempt: an attempt is started again if its container was preempted.
        name: What it is, such as ``supervisor.log``, ``ray/worker-….err``, ``skyrl-logs/infra-….log`` or
            ``machine/memory.jsonl``.
        size: Bytes.
        path: Its path in the run's folder.
    """

    rank: int
    attempt: int | None
    start: int
    name: str
    size: int
    path: str
    _execution: Execution = field(repr=False, eq=False)

    @translate_system_errors()
    def read(self) -> bytes:
        """Return its content.

        Raises:
            PathNotFound: It was removed. It is also a FileNotFoundError.
            BackendUnavailable: The backend cannot answer now.
        """
        return self._execution.read_file(self.path)

    @property
    def title(self) -> str:
        """Attempt and name for people, such as ``2/ray/raylet.out``."""
        return self.name if self.attempt is None else f"{start_folder_name(self.attempt, self.start)}/{self.name}"


def list_kept_logs(
    execution: Execution, *, rank: int | None = None, attempt: int | None = None, pattern: str = "*"
) -> list[KeptLog]:
    """Return the kept logs of a run, sorted by rank, attempt, start and name.

    Args:
        execution: The run.
        rank: Those of this rank; None for all.
        attempt: Those of this attempt; None for all.
        pattern: Those whose name matches this pattern of ``fnmatch``, such as ``ray/*.err``.

    Raises:
        FileNotFoundError: No logs are stored, or not yet.
    """
    logs = []
    for file in execution.list_files(LOGS_FOLDER):
        found = parse_log_path(file.path)
        if found is None or rank not in (None, found.rank) or attempt not in (None, found.attempt):
            continue
        if fnmatch.fnmatchcase(found.name, pattern):
            logs.append(
                KeptLog(
                    rank=found.rank,
                    attempt=found.attempt,
                    start=found.start,
                    name=found.name,
                    size=file.size,
                    path=f"{LOGS_FOLDER}/{file.path}",
                    execution=execution,
                )
            )
    return sorted(logs, key=_order)


def _order(log: KeptLog) -> tuple[int, int, int, bool, bool, str]:
    """Return the sort key: the messages of the supervisor first, and what ``ray start`` printed before Ray's files."""
    is_first = log.name == SUPERVISOR_LOG
    return log.rank, log.attempt or 0, log.start, not is_first, log.name != RAY_START_LOG, log.name


def read_logs(logs: Sequence[KeptLog], tail: int | None = None) -> Iterator[bytes]:
    """Yield logs, each after a line with its name and without Ray's dumps of its state.

    Args:
        logs: The logs. If they are of several ranks, the lines with the names contain the rank.
        tail: Number of lines to return, from the end; None for all.
    """
    pieces = _pieces(logs, has_ranks=len({log.rank for log in logs}) > 1)
    if tail is None:
        yield from pieces
        return
    kept: list[bytes] = []
    for piece in reversed(list(pieces)):
        kept.append(last_lines_of(piece, tail))
        tail -= kept[-1].count(b"\n")
    yield from reversed(kept)


def _pieces(logs: Sequence[KeptLog], *, has_ranks: bool) -> Iterator[bytes]:
    for log in logs:
        try:
            content = log.read()
        except FileNotFoundError:  # it was removed after it had been listed
            continue
        if log.name.startswith(f"{RAY_LOGS}/"):
            content = b"" if is_state_file(log.name) else without_state_dumps(content)
        if content:
            rank = f"rank {log.rank}: " if has_ranks else ""
            header = f"==> {rank}{escape_controls(log.title)} <==\n".encode("utf-8", "backslashreplace")
            yield header + content + (b"" if content.endswith(b"\n") else b"\n")
