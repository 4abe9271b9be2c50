"""The runs that were started from this machine: a small record each, in this user's state folder."""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs
from attrs import frozen

from skyrl_modal.errors import RunNotFound, SpecError
from skyrl_modal.protocol.job import Job


@frozen
class IndexRecord:
    """One run as it was started.

    Attributes:
        job: What runs.
        backend: The name of its backend.
        handle: What the backend finds it by.
    """

    job: Job
    backend: str
    handle: Mapping[str, Any]


class RunIndex:
    """The records of this user on this machine. Many may write at once: each run has a file of its own."""

    def __init__(self) -> None:
        self._folder = platformdirs.user_state_path("skyrl_modal") / "index"

    def add(self, record: IndexRecord) -> None:
        """Write a record; readers see all of it or nothing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(record.job.id)
        content = {"backend": record.backend, "handle": dict(record.handle), "job": json.loads(record.job.to_json())}
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(path)

    def get(self, run_id: str) -> IndexRecord:
        """The record of a run.

        Raises:
            RunNotFound: There is none; the error has the nearest ids.
        """
        if (self._folder / f"{run_id}.json").is_file() and "/" not in run_id:
            return self._read(self._path(run_id))
        known = [path.stem for path in self._paths()]
        starting = [name for name in known if run_id and name.startswith(run_id)]
        raise RunNotFound(run_id, starting[:3] or difflib.get_close_matches(run_id, known, n=3, cutoff=0.5))

    def all(self) -> list[IndexRecord]:
        """Every record, the oldest first; what cannot be read is skipped with a warning."""
        records = []
        for path in self._paths():
            try:
                records.append(self._read(path))
            except (ValueError, KeyError, TypeError, OSError) as error:
                warnings.warn(f"{path} is no record of a run and is skipped: {error}", stacklevel=2)
        return records

    def _path(self, run_id: str) -> Path:
        return self._folder / f"{run_id}.json"

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []

    @staticmethod
    def _read(path: Path) -> IndexRecord:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise SpecError("record", str(path), "this is no record of a run")
        return IndexRecord(Job.from_json(json.dumps(content["job"])), content["backend"], content["handle"])
