"""Answer requests about runs in another process of the same user: one line of JSON for each request and each answer.

The request ``{"action": "cancel"}`` cancels a run as soon as it is found; ``"wait"`` returns its result and its log.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from skyrl_modal import Run, RunNotFound


def find(run_id: str, start_timeout: float) -> Run | None:
    """Return a run, after waiting until it is registered, or None if it is not registered in time."""
    deadline = time.monotonic() + start_timeout
    while True:
        try:
            return Run.attach(run_id)
        except RunNotFound:
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.02)  # the record is a file that another process writes: there is no event to wait for


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Execute a request and return the answer."""
    run = find(request["run_id"], request["start_timeout"])
    if run is None:
        return {"found": False}
    if request["action"] == "cancel":
        run.cancel()
        return {"found": True}
    result = run.wait(request["timeout"])
    return {
        "found": True,
        "state": result.state,
        "returncode": result.returncode,
        "cause": result.cause,
        "stop_reason": result.stop_reason,
        "detail": result.detail,
        "state_now": run.state,
        "lines": list(run.logs()),
        "followed": list(run.logs(follow=True)) if request["follow"] else None,
    }


def main() -> None:
    """Answer requests on standard input until it is closed."""
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # reported as a violation by the campaign
            reply = {"found": True, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
