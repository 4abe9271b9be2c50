"""Which files go into a run, and the copy of them that it sees."""

from __future__ import annotations

from skyrl_modal.mount.selection import Selection, select
from skyrl_modal.mount.snapshot import Snapshot, SnapshotStore

__all__ = ["Selection", "Snapshot", "SnapshotStore", "select"]
