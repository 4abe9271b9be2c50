"""The files that a run will probably have, before they are known: those of the last runs of the same folders.

A backend can start the processes of a run with them while the run is planned. It is used only if two runs in succession
had the same files: while a user edits files between runs, each start would be for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from skyrl_modal.backends.base import PreparedRun
from skyrl_modal.checkout_search import find_checkout
from skyrl_modal.errors import SkyRLModalError
from skyrl_modal.gitfiles.result_cache import ResultCache
from skyrl_modal.prepare.job_builder import build_expected_job
from skyrl_modal.snapshots.snapshot import Snapshot, find_snapshot
from skyrl_modal.spec.run_spec import RunSpec

#: The name of the record begins with this. To be changed with the meaning of a record.
_FORMAT = "snapshots 1"


def expect_run(spec: RunSpec, run_id: str, cache: ResultCache, store: Path) -> PreparedRun | None:
    """Return a run as far as it is known before its plan; None if it is not expected to have the files of the last one.

    The job has only what decides where the run finds which files. The snapshots are locked.

    Args:
        spec: What the user declared.
        run_id: The id that the run will have.
        cache: The cache with the record of the last runs.
        store: The folder of the snapshots.
    """
    if spec.secrets or not store.is_dir():
        return None  # the values of secrets are part of the environment, and not known yet
    with suppress(SkyRLModalError, OSError, ValueError):
        digests = _last_digests(cache, _name(spec, _roots(spec)))
        if len(digests) == 2 and digests[0] == digests[1]:
            found: list[Snapshot] = []
            for digest in digests[0]:
                snapshot = find_snapshot(store, digest)
                if snapshot is None:
                    break
                found.append(snapshot)
            else:
                job = build_expected_job(spec, run_id)
                return PreparedRun(job=job, spec=spec, snapshots=found, secret_values={})
            for snapshot in found:
                snapshot.release()
    return None


def record_files(spec: RunSpec, roots: Sequence[Path], snapshots: Sequence[Snapshot], cache: ResultCache) -> None:
    """Record the files of a run.

    Args:
        spec: What the user declared.
        roots: The folders of the mounts.
        snapshots: Their snapshots.
        cache: The cache.
    """
    name, latest = _name(spec, list(map(str, roots))), [snapshot.digest for snapshot in snapshots]
    known = _last_digests(cache, name)
    if known != [latest, latest]:
        cache.save(name, json.dumps([latest, *known[:1]]).encode())


def _roots(spec: RunSpec) -> list[str]:
    checkout = None
    if any(mount.local_path is None for mount in spec.mounts):
        checkout = spec.checkout or find_checkout()
    return [os.path.realpath(mount.local_path or checkout or "") for mount in spec.mounts]


def _name(spec: RunSpec, roots: Sequence[str]) -> str:
    rules = [[list(mount.exclude), list(mount.include), mount.skip_caches] for mount in spec.mounts]
    return f"{_FORMAT} of {json.dumps([list(roots), rules])}"


def _last_digests(cache: ResultCache, name: str) -> list[list[str]]:
    """Return the digests of the snapshots of the last two runs, the last one first."""
    content = cache.load(name)
    try:
        found: list[list[str]] = [] if content is None else json.loads(content)
    except ValueError:
        return []
    return found
