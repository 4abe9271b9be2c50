"""The list of runs: what each of them does or did, without an error of one run or backend that affects the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from skyrl_modal.backends import get_backend
from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import BackendUnavailable, PathNotFound, SkyRLModalError
from skyrl_modal.protocol.codec import ProtocolError, encode, from_json
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import JOB_FILE, MAX_RECORD_BYTES, RESULT_FILE
from skyrl_modal.protocol.state import FailureCause, RunState
from skyrl_modal.run.handle import Run
from skyrl_modal.run.index import RunIndex

_LOCAL = "local"
#: Runs whose backend is asked at the same time.
_PARALLEL = 8
#: The folder with the runs' folders on a volume.
_RUNS_FOLDER = ".skyrl_modal/runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run in a list. The names are those of ``Run``, ``Job`` and ``RunResult``.

    Attributes:
        run_id: The run's id.
        name: Its name; None if it has none.
        tags: Its tags.
        command: The command.
        backend: The name of its backend.
        state: Its state; ``unknown`` if the backend cannot be asked.
        returncode: The exit code of a run that has ended; else None.
        cause: Why it did not succeed; None if it did, or has not ended.
        attempts: How many times the command was started; None while it runs.
        created_at: When it was created: ISO 8601, UTC.
        started_at: When it started in its container: ISO 8601, UTC; None if that is not known.
        duration: Seconds until its end; of a run that has not ended, since it was created.
        gpu: The requested GPUs of each node, in order of preference; empty for none, or if it is not known.
        nodes: Number of nodes.
        cost: What it has cost, in US dollars; None if that is not known.
        log_path: Where its output is stored.
        unavailable_reason: Why its state is not known; None if it is.
    """

    run_id: str
    name: str | None
    tags: tuple[str, ...]
    command: str
    backend: str
    state: RunState
    returncode: int | None = None
    cause: FailureCause | None = None
    attempts: int | None = None
    created_at: str
    started_at: str | None = None
    duration: float | None = None
    gpu: tuple[str, ...] = ()
    nodes: int = 1
    cost: float | None = None
    log_path: str = ""
    unavailable_reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the summary as data that ``json.dumps`` accepts."""
        return encode(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs are listed.

    Attributes:
        states: Those in one of these states; empty for all.
        since: Those that were created since then; None for all.
        tags: Those with all of these tags.
        backend: Those of this backend; None for all.
        limit: Number of runs at most; None for all.
    """

    states: Collection[RunState] = ()
    since: datetime | None = None
    tags: Collection[str] = ()
    backend: str | None = None
    limit: int | None = None


def list_runs(wanted: RunFilter) -> list[RunSummary]:
    """Return the runs that were started from this machine, the newest first.

    Records that cannot be read are skipped with a warning.

    Raises:
        StorageError: The folder with the records cannot be read.
    """
    unreachable: dict[str, str] = {}
    found: list[RunSummary] = []
    candidates = _matching(RunIndex().newest_first(), wanted)
    while wanted.limit is None or len(found) < wanted.limit:
        missing = None if wanted.limit is None else wanted.limit - len(found)
        group = _take(candidates, missing)
        if not group:
            break
        summaries = _summarize(group, unreachable)
        found += [one for one in summaries if not wanted.states or one.state in wanted.states]
    return found


def _matching(records: Iterable[Any], wanted: RunFilter) -> Iterator[Run]:
    for record in records:
        job = record.job
        if wanted.since is not None and datetime.fromisoformat(job.created_at) < wanted.since:
            return  # the ids of runs begin with their time
        if set(wanted.tags) <= set(job.tags) and wanted.backend in (None, record.backend):
            yield Run._from_record(record)


def _take(runs: Iterator[Run], count: int | None) -> list[Run]:
    found = []
    for run in runs:
        found.append(run)
        if count is not None and len(found) == count:
            break
    return found


def _summarize(runs: Sequence[Run], unreachable: dict[str, str]) -> list[RunSummary]:
    """Return a summary of each run. A backend that cannot be reached is asked once."""
    summaries: dict[str, RunSummary] = {}
    others = [run for run in runs if run.backend != _LOCAL]
    first_of_backend = {run.backend: run for run in reversed(others) if run.unavailable_reason is None}
    for run in (*(run for run in runs if run.backend == _LOCAL), *first_of_backend.values()):
        if run.backend not in unreachable:
            summaries[run.id] = summarize(run, unreachable)
    rest = [run for run in others if run.id not in summaries]
    if len(rest) > 1 and not all(run.backend in unreachable or run.unavailable_reason for run in rest):
        from concurrent.futures import ThreadPoolExecutor  # imported here, since local runs need no threads

        with ThreadPoolExecutor(_PARALLEL, "skyrl-modal-list") as pool:
            summaries |= {one.run_id: one for one in pool.map(lambda run: summarize(run, unreachable), rest)}
    else:
        summaries |= {run.id: summarize(run, unreachable) for run in rest}
    return [summaries[run.id] for run in runs]


def summarize(run: Run, unreachable: dict[str, str]) -> RunSummary:
    """Return the summary of a run. An error of its backend is a reason, and does not affect other runs.

    Args:
        run: The run.
        unreachable: Backends that are not asked, and why. A backend that cannot be reached is added.
    """
    reason = run.unavailable_reason or unreachable.get(run.backend)
    state, record, cost = RunState.UNKNOWN, None, None
    if reason is None:
        try:
            state = run.state
            record = run._execution.wait(0) if state.is_final else None
            cost = run.cost_at(state)
        except TimeoutError:  # its supervisor still removes files
            pass
        except BackendUnavailable as error:
            reason = unreachable[run.backend] = str(error)
        except Exception as error:  # any error of a backend that another package may provide
            reason = str(error)
    return _build(run.job, run.backend, state, record, cost, _gpus(run), run.log_path, reason)


def _build(
    job: Job,
    backend: str,
    state: RunState,
    record: RunResultRecord | None,
    cost: float | None,
    gpu: tuple[str, ...],
    log_path: str,
    reason: str | None,
) -> RunSummary:
    duration = None
    if record is not None:
        duration = record.duration
    elif state in (RunState.PENDING, RunState.PREPARING, RunState.RUNNING):
        duration = (datetime.now(UTC) - datetime.fromisoformat(job.created_at)).total_seconds()
    return RunSummary(
        run_id=job.run_id,
        name=job.name,
        tags=job.tags,
        command=job.command,
        backend=backend,
        state=state,
        returncode=None if record is None else record.returncode,
        cause=None if record is None else record.cause,
        attempts=None if record is None else record.attempts,
        created_at=job.created_at,
        started_at=None if record is None else record.started_at,
        duration=duration,
        gpu=gpu,
        nodes=job.nodes,
        cost=cost,
        log_path=log_path,
        unavailable_reason=reason,
    )


def _gpus(run: Run) -> tuple[str, ...]:
    """Return the requested GPUs. A run on this machine has those of the machine."""
    declared = run._stored_spec.get("gpu")
    if run.backend == _LOCAL or declared is None:
        return ()
    return (declared,) if isinstance(declared, str) else tuple(map(str, declared))


def list_runs_on_volume(backend_name: str, volume: str, wanted: RunFilter) -> list[RunSummary]:
    """Return the runs whose records are on a volume, the newest first: also those of other machines.

    The state of a run without a result is ``unknown``: only its own machine can find out whether it is active.
    Records that cannot be read are skipped with a warning.

    Args:
        backend_name: The backend that has the volume.
        volume: Its name.
        wanted: Which runs are listed.

    Raises:
        SpecError: The name is not valid, or there is no such backend.
        BackendUnavailable: The backend cannot answer now.
        PathNotFound: There is no such volume, or it has no runs.
    """
    from skyrl_modal.spec.volume import VolumeSpec  # imported here, since other lists do not need it

    backend, spec = get_backend(backend_name), VolumeSpec(name=volume)
    try:
        entries = backend.ls(spec, _RUNS_FOLDER)
    except FileNotFoundError:
        raise PathNotFound(
            f"the volume {volume} does not exist on the backend {backend_name}, or has no runs"
        ) from None
    names = sorted((entry.path.rsplit("/", 1)[-1] for entry in entries if entry.type == "dir"), reverse=True)
    found: list[RunSummary] = []
    for name in names:
        if wanted.limit is not None and len(found) >= wanted.limit:
            break
        summary = _read_from_volume(lambda path: backend.read(spec, path), backend_name, name)
        if summary is None:
            continue
        if wanted.since is not None and datetime.fromisoformat(summary.created_at) < wanted.since:
            break
        if set(wanted.tags) <= set(summary.tags) and (not wanted.states or summary.state in wanted.states):
            found.append(summary)
    return found


def _read_from_volume(read: Callable[[str], Iterator[bytes]], backend: str, name: str) -> RunSummary | None:
    """Return the summary of a run by the files in its folder on a volume; None if they cannot be read.

    Args:
        read: Yields the content of a file of the volume.
        backend: The backend's name.
        name: The name of the run's folder.
    """
    folder = f"{_RUNS_FOLDER}/{name}"
    try:
        job = from_json(Job, _read_record(read, f"{folder}/{JOB_FILE}"))
        if job.run_id != name or datetime.fromisoformat(job.created_at).tzinfo is None:
            raise ValueError("job.json is not that of this run")
        try:
            record = from_json(RunResultRecord, _read_record(read, f"{folder}/{RESULT_FILE}"))
        except FileNotFoundError:
            record = None
    except BackendUnavailable:
        raise
    except (ProtocolError, ValueError, OSError, SkyRLModalError) as error:
        warnings.warn(f"skipping a run on the volume: {name}: {error}", stacklevel=2)
        return None
    state = RunState.UNKNOWN if record is None else record.state
    cost = None if record is None else record.cost
    reason = None if record is not None else "it has no result: it is active, or was lost"
    return _build(job, backend, state, record, cost, (), f"{job.run_folder}/output.log", reason)


def _read_record(read: Callable[[str], Iterator[bytes]], path: str) -> bytes:
    content = b""
    for data in read(path):
        content += data
        if len(content) > MAX_RECORD_BYTES:
            raise ValueError(f"{path} is larger than {MAX_RECORD_BYTES:,} bytes")
    return content
