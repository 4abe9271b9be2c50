"""The records of a run that has no writable volume: its state, result and usage, for the container that continues it.

They are kept in the Dict with the leases, since the folder of such a run ends with its container. Without them, a
command whose container died would start again, whatever the run's retries are.
"""

from __future__ import annotations

import contextlib
import json

from skyrl_modal.container.lease_store import LeaseStore, StoreUnavailable, send
from skyrl_modal.protocol.codec import ProtocolError, decode, encode
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.leases import records_key
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import RunFolder, read_record, write_record
from skyrl_modal.protocol.state import NextStart
from skyrl_modal.protocol.status import StatusRecord
from skyrl_modal.protocol.usage import USAGE_FILE, UsageRecord


class KeptRecords:
    """Copies of the records of a run. Nothing is kept if the run's folder is on a volume.

    Args:
        store: The Dict with the leases.
        job: The run.
    """

    def __init__(self, store: LeaseStore, job: Job) -> None:
        self._store = store
        self._key = records_key(job.run_id)
        self._folder = RunFolder(job.run_folder)
        self._is_needed = job.run_folder_volume is None

    def restore(self) -> None:
        """Write the records of an earlier container to the run's folder; do nothing if there are none."""
        if not self._is_needed:
            return
        with contextlib.suppress(StoreUnavailable, ProtocolError, OSError, ValueError):
            value = send(lambda: self._store.get(self._key))
            if value is None:
                return
            status, result, *usage = json.loads(str(value))
            self._folder.create()
            self._folder.write_status(decode(StatusRecord, status))
            if result is not None:
                self._folder.write_result(decode(RunResultRecord, result))
            for item in filter(None, usage):
                write_record(self._folder.file(USAGE_FILE), decode(UsageRecord, item), is_durable=False)

    def keep(self) -> None:
        """Keep the records as they are now. They are removed if the run has ended."""
        if not self._is_needed:
            return
        with contextlib.suppress(StoreUnavailable, ProtocolError, OSError):
            status, result = self._folder.read_status(), self._folder.read_result()
            if status is None or (result is not None and result.next_start is NextStart.NONE):
                send(lambda: self._store.pop(self._key, None))
                return
            usage = read_record(UsageRecord, self._folder.file(USAGE_FILE))
            value = json.dumps([None if record is None else encode(record) for record in (status, result, usage)])
            send(lambda: self._store.put(self._key, value))
