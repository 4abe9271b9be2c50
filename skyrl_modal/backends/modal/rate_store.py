"""The workspace's rates on this machine, so that not every start of a run requests them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from skyrl_modal.errors import StorageError
from skyrl_modal.protocol.run_folder import open_regular_file, write_atomically
from skyrl_modal.user_folders import cache_folder, create_user_folder

#: Seconds for which stored rates are used without a request.
RATES_VALIDITY = 6 * 3600.0
#: Seconds for which they are used if a request has failed: a negotiated rate is better than the table.
RATES_MAX_AGE = 30 * 86400.0
#: Seconds without a further request after one that has failed.
FAILURE_VALIDITY = 600.0
_FILE = "modal-rates.json"
_MAX_BYTES, _MAX_RATES = 1 << 20, 1000
#: The variables that choose the workspace and the server.
_VARIABLES = ("MODAL_TOKEN_ID", "MODAL_SERVER_URL", "MODAL_PROFILE", "MODAL_ENVIRONMENT")


def load_rates() -> tuple[Mapping[str, float], float] | None:
    """Return the stored rates of the current workspace by Modal's names, and the time at which they were fetched.

    Returns:
        None if there are none, or if they are too old to be used.
    """
    entry = _load()
    rates, fetched_at = entry.get("rates"), entry.get("fetched_at")
    if not isinstance(rates, dict) or not _is_recent(fetched_at, RATES_MAX_AGE):
        return None
    values = {
        str(name): float(value)
        for name, value in list(rates.items())[:_MAX_RATES]
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return values, float(fetched_at)  # type: ignore[arg-type]  # _is_recent accepts numbers only


def needs_request() -> bool:
    """Return whether the rates have to be requested: none are stored, they are old, and no request failed lately."""
    entry = _load()
    return not _is_recent(entry.get("fetched_at"), RATES_VALIDITY) and not _is_recent(
        entry.get("failed_at"), FAILURE_VALIDITY
    )


def store_rates(rates: Mapping[str, float]) -> None:
    """Store rates that were fetched now."""
    _save({"rates": dict(rates), "fetched_at": time.time()})


def store_failure() -> None:
    """Store that a request failed now. Rates that were stored before are kept."""
    _save({**_load(), "failed_at": time.time()})


def _is_recent(moment: object, limit: float) -> bool:
    """Return whether a time is at most ``limit`` seconds ago. A time in the future is not: a clock was wrong."""
    if not isinstance(moment, int | float) or isinstance(moment, bool) or not math.isfinite(moment):
        return False
    return 0 <= time.time() - moment <= limit


def _load() -> dict[str, object]:
    try:
        with open_regular_file(cache_folder() / _FILE) as file:
            data = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError, StorageError):  # absent or damaged: it can be requested again
        return {}
    return data if isinstance(data, dict) and data.get("workspace") == _workspace_key() else {}


def _save(entry: Mapping[str, object]) -> None:
    try:
        folder = create_user_folder(cache_folder())
        content = json.dumps({**entry, "workspace": _workspace_key()})
        write_atomically(folder / _FILE, content.encode(), mode=0o600, is_durable=False)
    except (OSError, StorageError):  # only the next start is slower
        return


def _workspace_key() -> str:
    """Return a digest of what chooses the workspace: variables, and Modal's configuration file with its tokens."""
    path = os.environ.get("MODAL_CONFIG_PATH") or str(Path("~/.modal.toml").expanduser())
    try:
        with open_regular_file(path) as file:
            config = file.read(_MAX_BYTES)
    except (OSError, ValueError):
        config = b""
    chosen = json.dumps([os.environ.get(name) for name in _VARIABLES])
    return hashlib.sha256(chosen.encode() + b"\0" + config).hexdigest()
