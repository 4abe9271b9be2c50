"""The selection of files for a run, and snapshots of them."""

from __future__ import annotations

from skyrl_modal.gitfiles.selection import Selection, select
from skyrl_modal.snapshots.snapshot import Snapshot
from skyrl_modal.snapshots.store import SnapshotStore

__all__ = ["Selection", "Snapshot", "SnapshotStore", "select"]
