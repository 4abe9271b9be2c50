"""Why a run failed: its logs, and the rules about known failures. Loaded after a failure, or when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from skyrl_modal.errors import BackendUnavailable, RecordError, RunNotFound, SkyRLModalError, StorageError
from skyrl_modal.protocol.kept_logs import GPU_LOG, KILLED_KEY, MEMORY_LOG, RAY_LOGS, is_state_file, without_state_dumps
from skyrl_modal.protocol.state import RunState
from skyrl_modal.run.kept_logs import KeptLog, list_kept_logs
from skyrl_modal.run.output_reader import OutputReader
from skyrl_modal.skyrl.failures.diagnosis import diagnose
from skyrl_modal.skyrl.failures.rule import OUTPUT_LOG, FailureFacts, LogSource

if TYPE_CHECKING:
    from skyrl_modal.backends import Execution
    from skyrl_modal.findings import Diagnosis
    from skyrl_modal.run.result import RunResult

T = TypeVar("T")

#: Bytes of the output that are read: of a larger one, its beginning and its end.
_MAX_OUTPUT, _OUTPUT_HEAD = 256 << 20, 64 << 20
#: Bytes of kept logs that are read.
_MAX_KEPT = 256 << 20


def diagnose_run(result: RunResult, execution: Execution | None = None) -> Diagnosis | None:
    """Return why a run failed; None if it succeeded.

    Logs that cannot be read now are left out. Without any, the last lines in the result are read.

    Args:
        result: The result of the run.
        execution: The run; None to find it in the index.
    """
    if result.state is RunState.SUCCEEDED:
        return None
    facts = FailureFacts(returncode=result.returncode, cause=result.cause, detail=result.detail)
    execution = _find_execution(result.run_id) if execution is None else execution
    return diagnose(_sources(result, execution), facts, year=result.started_at.year)


def _find_execution(run_id: str) -> Execution | None:
    """Return the run with an id; None if it is not in the index of this machine."""
    from skyrl_modal.run.handle import Run
    from skyrl_modal.run.index import RunIndex

    try:
        return Run._from_record(RunIndex().get(run_id))._execution
    except (RunNotFound, RecordError, StorageError):
        return None


def _sources(result: RunResult, execution: Execution | None) -> Iterator[LogSource]:
    attempt = 1 if result.attempts <= 1 else None
    output = None
    if execution is not None:
        output = _readable(lambda: _read_output(result.run_id, execution))
    if output is None:
        output = iter([result.log_tail.encode("utf-8", "replace")])
    yield LogSource(name=OUTPUT_LOG, chunks=output, attempt=attempt)
    if execution is None:
        return
    size = 0
    for log in _readable(lambda: iter(list_kept_logs(execution))) or ():
        size += log.size
        if size <= _MAX_KEPT and log.name != GPU_LOG and not is_state_file(log.name):
            content = _readable(partial(_read_kept, log))
            if content is not None:
                yield LogSource(name=log.name, chunks=content, rank=log.rank, attempt=log.attempt)


def _readable(read: Callable[[], Iterator[T]]) -> Iterator[T] | None:
    """Return what a log contains; None if it cannot be read. An error after its beginning ends it."""
    try:
        pieces = read()
        first = next(pieces, None)
    except (OSError, SkyRLModalError):
        return None
    return None if first is None else _until_error(first, pieces)


def _until_error(first: T, rest: Iterator[T]) -> Iterator[T]:
    yield first
    try:
        yield from rest
    except (OSError, RecordError, BackendUnavailable, StorageError):
        return


def _read_output(run_id: str, execution: Execution) -> Iterator[bytes]:
    reader = OutputReader(run_id, execution, lambda text: None)
    size = execution.log_size()
    if size <= _MAX_OUTPUT:
        yield from reader.read_range(0, size)
        return
    yield from reader.read_range(0, _OUTPUT_HEAD)
    yield b"\n"
    yield from reader.read_range(size - _MAX_OUTPUT + _OUTPUT_HEAD, size)


def _read_kept(log: KeptLog) -> Iterator[bytes]:
    content = log.read()
    if log.name == MEMORY_LOG:
        content = only_new_kills(content)
    elif log.name.startswith(f"{RAY_LOGS}/"):
        content = without_state_dumps(content)
    yield content


def only_new_kills(content: bytes) -> bytes:
    r"""Return the lines with counters of memory after which a process had been killed since the first line.

    The counters are those of a control group, which may be older than the run. Other lines become empty. If the command
    was killed before the first line was written, that line counts too.

    Example:
        >>> only_new_kills(b'{"oom_kill": 3}\n{"oom_kill": 3}\n{"oom_kill": 4}\n')
        b'\n\n{"oom_kill": 4}\n'
    """
    first: int | None = None
    lines = []
    for line in content.split(b"\n"):
        try:
            record = json.loads(line)
            kills = record["oom_kill"]
            if first is None:
                first = 0 if record.get(KILLED_KEY) is True else kills
            lines.append(line if kills > first else b"")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # another program has written it
            lines.append(b"")
    return b"\n".join(lines)
