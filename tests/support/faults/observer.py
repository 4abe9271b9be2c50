"""Another process of the same user's: a line of JSON asks it, a line of JSON answers.

``{"do": "cancel"}`` cancels a run as soon as it can be found; ``"wait"`` tells its result and its log.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from skyrl_modal import Run, RunNotFound


def find(run_id: str, patience: float) -> Run | None:
    """The run, which may be on its way still; None where it does not come."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return Run.attach(run_id)
        except RunNotFound:
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.02)  # the record is a file of another process: nobody tells of it


def answer(question: dict[str, Any]) -> dict[str, Any]:
    run = find(question["run_id"], question["patience"])
    if run is None:
        return {"found": False}
    if question["do"] == "cancel":
        run.cancel()
        return {"found": True}
    result = run.wait(question["timeout"])
    return {
        "found": True,
        "state": str(result.state),
        "returncode": result.returncode,
        "detail": result.detail,
        "state_now": str(run.state),
        "lines": list(run.logs()),
        "followed": list(run.logs(follow=True)) if question["follow"] else None,
    }


def main() -> None:
    for line in sys.stdin:
        try:
            told = answer(json.loads(line))
        except Exception as error:  # it is a finding, for who asked
            told = {"found": True, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
