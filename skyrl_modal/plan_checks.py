"""What a backend and earlier runs show about a plan: files on volumes, folders that other runs use, and step times."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

from skyrl_modal.backends import Backend
from skyrl_modal.errors import SkyRLModalError
from skyrl_modal.prepare.command_starts import CheckedState
from skyrl_modal.run.handle import Run
from skyrl_modal.run.index import RunIndex
from skyrl_modal.skyrl.progress import find_seconds_per_step
from skyrl_modal.spec.bucket import AnyVolume
from skyrl_modal.spec.fields import is_below

#: The newest runs that are examined, and lines of their output.
MAX_RUNS = 20
_TAIL_LINES = 2000


def check_state(backend: Backend, volumes: Sequence[AnyVolume], command: str) -> CheckedState:
    """Return what the backend and earlier runs show. What cannot be found out is not known, and is no error.

    Args:
        backend: The backend, which is asked for files and states.
        volumes: The volumes of the run.
        command: The command. Earlier runs with the same one show how long a step takes.
    """
    names = {volume.name for volume in volumes}
    used: dict[str, str] = {}
    seconds: float | None = None
    for run in _newest_runs(backend):
        job = run.job
        if job.checkpoint_folders and names & {volume.name for volume in job.volumes} and _is_active(run):
            used |= {folder.rstrip("/"): run.id for folder in job.checkpoint_folders}
        if seconds is None and job.command == command:
            seconds = _seconds_per_step(run)
    return CheckedState(
        path_exists=_PathLookup(backend, volumes).exists, used_checkpoint_folders=used, seconds_per_step=seconds
    )


class _PathLookup:
    """Asks a backend for paths on volumes, each once."""

    def __init__(self, backend: Backend, volumes: Sequence[AnyVolume]) -> None:
        self._backend = backend
        self._volumes = sorted(volumes, key=lambda volume: -len(volume.mount_path))
        self._known: dict[str, bool | None] = {}

    def exists(self, path: str) -> bool | None:
        """Return whether a path on a volume exists; None if it is on none, or this cannot be found out."""
        path = posixpath.normpath(path)
        if path not in self._known:
            self._known[path] = self._ask(path)
        return self._known[path]

    def _ask(self, path: str) -> bool | None:
        volume = next((volume for volume in self._volumes if is_below(path, volume.mount_path)), None)
        if volume is None:
            return None
        try:
            self._backend.ls(volume, path.removeprefix(volume.mount_path).lstrip("/"))
        except FileNotFoundError:
            return False
        except SkyRLModalError:
            return None
        return True


def _newest_runs(backend: Backend) -> Iterator[Run]:
    for number, record in enumerate(RunIndex().newest_first()):
        if number >= MAX_RUNS:
            return
        if record.backend == backend.name:
            try:
                yield Run.attach(record.job.run_id)
            except SkyRLModalError:
                continue


def _is_active(run: Run) -> bool:
    try:
        return not run.state.is_final
    except SkyRLModalError:
        return False


def _seconds_per_step(run: Run) -> float | None:
    try:
        return find_seconds_per_step("\n".join(run.logs(tail=_TAIL_LINES)))
    except SkyRLModalError:
        return None
