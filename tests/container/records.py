"""Records that the tests of the container start from."""

from __future__ import annotations

from pathlib import Path

from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.rank_config import ClusterTokens, RankConfig
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.state import RunState

CREATED_AT = "2026-01-01T00:00:00+00:00"
TOKENS = ClusterTokens(ranks="token-of-the-ranks", ray="ab" * 32)


def make_job(folder: Path, command: str = "true", **fields: object) -> Job:
    """Return a job whose workdir and run folder exist."""
    run_folder = folder / "run"
    run_folder.mkdir(exist_ok=True)
    values = {"run_id": "run-1", "created_at": CREATED_AT, "workdir": str(folder), "run_folder": str(run_folder)}
    return Job(command=command, **{**values, **fields})  # type: ignore[arg-type]  # the fields are typed by Job


def make_cluster(nodes: int, port: int = 0) -> RankConfig:
    """Return rank 0 of a cluster whose ranks are all on this machine."""
    return RankConfig(addresses=("127.0.0.1",) * nodes, port=port, tokens=TOKENS)


def make_result(state: RunState, **fields: object) -> RunResultRecord:
    """Return the result of one attempt."""
    values = {"run_id": "run-1", "returncode": 130, "attempts": 1, "started_at": CREATED_AT, "duration": 1.0}
    return RunResultRecord(state=state, **{**values, **fields})  # type: ignore[arg-type]  # typed by RunResultRecord
