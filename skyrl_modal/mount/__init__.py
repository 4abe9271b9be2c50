"""Which files go into a run, and the copy of them that it sees."""

from __future__ import annotations

from skyrl_modal.mount.lease import Snapshot
from skyrl_modal.mount.selection import Selection, select
from skyrl_modal.mount.snapshot import SnapshotStore

__all__ = ["Selection", "Snapshot", "SnapshotStore", "select"]
