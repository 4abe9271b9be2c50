"""What the runs of this machine have cost, alone and in groups.

The cost of a run that has ended does not change: it is stored in the user's cache folder, so that it is asked for once.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from skyrl_modal.dataclass import dataclass
from skyrl_modal.errors import SpecError, StorageError
from skyrl_modal.protocol.codec import ProtocolError
from skyrl_modal.protocol.run_folder import read_record, write_record
from skyrl_modal.protocol.state import RunState
from skyrl_modal.run.handle import Run
from skyrl_modal.run.index import RunIndex
from skyrl_modal.spec.duration import parse_duration
from skyrl_modal.user_folders import cache_folder, create_user_folder

#: Number of runs that are asked for at the same time.
_PARALLEL = 8
_SINCE_REMEDY = 'pass a duration such as "7d" or "12h", or a date such as "2026-11-01"'


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalCost:
    """The cost of a run that has ended.

    Attributes:
        state: Its final state.
        cost: US dollars.
    """

    state: RunState
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpending:
    """What one run has cost.

    Attributes:
        run: The run.
        state: Its state; ``unknown`` if its backend cannot answer.
        cost: US dollars until now, or until its end; None if that is not known.
        reason: Why the state or the cost is not known; None if both are.
    """

    run: Run
    state: RunState
    cost: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingGroup:
    """What the runs of a group have cost.

    Attributes:
        key: The script, tag, name, backend or day that the runs have in common; ``"-"`` for none.
        runs: Number of runs.
        cost: US dollars of those whose cost is known.
        unknown: Number of runs whose cost is not known.
    """

    key: str
    runs: int
    cost: float
    unknown: int = 0


def spending_of(run: Run) -> RunSpending:
    """Return what a run has cost. An error of its backend is a reason, and does not affect other runs."""
    stored = _load(run.id)
    if stored is not None:
        return RunSpending(run=run, state=stored.state, cost=stored.cost)
    state, cost, reason = RunState.UNKNOWN, None, run.unavailable_reason
    if reason is None:
        try:
            state = run.state
            cost = run.cost_at(state)
        except Exception as error:  # any error of a backend that another package may provide
            reason = str(error)
    if state.is_final and cost is not None:
        _save(run.id, FinalCost(state=state, cost=cost))
    if cost is None and reason is None:
        reason = "its rate is not known" if run.job.rate is None else "it has left no record of its time"
    return RunSpending(run=run, state=state, cost=cost, reason=reason)


def find_spending(since: str | timedelta | None = None) -> list[RunSpending]:
    """Return what the runs cost that this user started from this machine, the newest first.

    Args:
        since: Runs that were started in this time until now, such as ``"7d"``, or since this day (``"2026-11-01"``,
            in UTC); None for all.

    Raises:
        SpecError: ``since`` is neither.
    """
    begin = None if since is None else _parse_since(since)
    found = []
    for record in RunIndex().newest_first():
        if begin is not None and datetime.fromisoformat(record.job.created_at) < begin:
            break
        found.append(Run._from_record(record))
    if not found:
        return []
    from concurrent.futures import ThreadPoolExecutor  # imported here, since most commands do not need it

    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(spending_of, found))


def group_spending(items: Iterable[RunSpending], by: str) -> list[SpendingGroup]:
    """Return what groups of runs cost, the most expensive one first. A run with several tags is in several groups.

    Args:
        items: The runs.
        by: A key of ``GROUPINGS``.
    """
    groups: dict[str, list[RunSpending]] = {}
    for item in items:
        for key in GROUPINGS[by](item.run) or ("-",):
            groups.setdefault(key, []).append(item)
    found = [_group(key, members) for key, members in groups.items()]
    return sorted(found, key=lambda group: (-group.cost, group.key))


def total_spending(items: Sequence[RunSpending]) -> SpendingGroup:
    """Return what all runs cost together. Each run counts once."""
    return _group("total", items)


def _group(key: str, members: Sequence[RunSpending]) -> SpendingGroup:
    known = [item.cost for item in members if item.cost is not None]
    return SpendingGroup(key=key, runs=len(members), cost=sum(known), unknown=len(members) - len(known))


def script_of_command(command: str) -> str:
    """Return what a command starts: its script, else its module, else its program.

    Example:
        >>> [script_of_command(text) for text in ("A=1 bash run.sh x=1", "uv run -m skyrl.train", "nvidia-smi -L")]
        ['run.sh', 'skyrl.train', 'nvidia-smi']
    """
    try:
        parts = shlex.split(command, comments=True)
    except ValueError:  # a quotation mark is not closed: the shell would refuse it
        parts = command.split()
    for number, part in enumerate(parts):
        if part.endswith((".sh", ".py")):
            return part
        if part == "-m" and number + 1 < len(parts):
            return parts[number + 1]
    return next((part for part in parts if not re.match(r"\w+=", part)), "-")


#: The keys of a run's groups, by what the groups are formed.
GROUPINGS: dict[str, Callable[[Run], Sequence[str]]] = {
    "script": lambda run: (script_of_command(run.job.command),),
    "tag": lambda run: run.job.tags,
    "name": lambda run: (run.job.name,) if run.job.name else (),
    "backend": lambda run: (run.backend,),
    "day": lambda run: (datetime.fromisoformat(run.job.created_at).astimezone(UTC).date().isoformat(),),
}


def _parse_since(value: str | timedelta) -> datetime:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(value.strip())
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    try:
        seconds = parse_duration(value, name="since")
        return datetime.now(UTC) - timedelta(seconds=seconds)
    except (SpecError, OverflowError) as error:
        raise SpecError("since", value, _SINCE_REMEDY) from error


def final_cost_path(run_id: str) -> Path:
    """Return the file that has the cost of a run that has ended. It may not exist."""
    return cache_folder() / "costs" / f"{run_id}.json"


def _load(run_id: str) -> FinalCost | None:
    try:
        return read_record(FinalCost, final_cost_path(run_id))
    except (ProtocolError, StorageError):  # it is asked for again
        return None


def _save(run_id: str, cost: FinalCost) -> None:
    with contextlib.suppress(OSError, StorageError):  # it is asked for again
        path = final_cost_path(run_id)
        create_user_folder(path.parent)
        write_record(path, cost, mode=0o600, is_durable=False)
