"""Replacement of a container whose GPUs do not work by another one. No attempt of the run is counted for it.

The process exits without a reply to Modal, which then runs the input again in a new container, whatever the retry
policy of the function is (https://modal.com/docs/guide/retries). An input that fails on one container fails the call
of a cluster; the retry policy of the function then starts the cluster again.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from skyrl_modal.container.lease_store import LeaseStore, StoreUnavailable, send
from skyrl_modal.dataclass import dataclass
from skyrl_modal.protocol.leases import MAX_REPLACEMENTS, replacements_key

#: Exit code of the process. Modal replaces a container that exits with an error.
EXIT_CODE = 1
_REMEDY = (
    "Start the run again later or with another GPU type, check the CUDA version of the image, or ask Modal's support"
)


@dataclass(frozen=True, slots=True)
class Replacement:
    """The reply to a request for another container.

    Attributes:
        is_granted: Whether this process has to exit, so that another container continues.
        note: A sentence about it for people.
    """

    is_granted: bool
    note: str


class ContainerUnusable(Exception):
    """This container cannot start the command. It has saved its files and has to exit."""


class Replacements:
    """Counts the containers of a run that were replaced. The number is kept in a Dict, which no container owns.

    Args:
        store: The Dict with the leases.
        run_id: The run.
    """

    def __init__(self, store: LeaseStore, run_id: str) -> None:
        self._store = store
        self._key = replacements_key(run_id)

    def request(self) -> Replacement:
        """Request another container for this one."""
        try:
            value = send(lambda: self._store.get(self._key))
            text = str(value)
            count = int(text) if text.isdecimal() and len(text) < 9 else 0
            if count >= MAX_REPLACEMENTS:
                return Replacement(False, f"{count} earlier containers of this run had such a fault too. {_REMEDY}")
            send(lambda: self._store.put(self._key, str(count + 1)))
        except StoreUnavailable as error:
            # Without a count, containers could be replaced without end.
            return Replacement(False, f"Earlier replacements cannot be counted ({error}). {_REMEDY}")
        note = f"Starting this attempt in another container ({count + 1} of at most {MAX_REPLACEMENTS})"
        return Replacement(True, note)

    def forget(self) -> None:
        """Remove the count. It is not needed: Modal removes entries that are not used."""
        with contextlib.suppress(StoreUnavailable):
            send(lambda: self._store.pop(self._key, None))


def exit_container() -> NoReturn:
    """End this process without a reply to Modal."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # it may be closed
            stream.flush()
    os._exit(EXIT_CODE)
