"""The function that Modal calls: the supervisor between a reload and a commit of the volumes.

It is registered by its module's name and never pickled, so the caller's Python and the image's need not be the same.
Modal's ways to stop a function are exceptions in its main thread (a cancelled input; SIGINT for a preemption, or as an
app ends). So the supervisor has a thread of its own, and the main thread only waits and turns each into a request.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import modal

from skyrl_modal.container.supervisor import BROKEN, Supervisor, write_json

#: What our own lines on standard error begin with; standard output is the command's alone.
PREFIX = "skyrl-modal | "


class _LiveText:
    """The command's output as text for Modal's logs, counted, so that the caller can tell whether it got all of it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._hash = hashlib.sha256()
        self.characters = 0

    def write(self, data: bytes, final: bool = False) -> None:
        """Show bytes; a character that is not whole yet waits for the rest of it."""
        text = self._decoder.decode(data, final)
        self.characters += len(text)
        encoded = text.encode()
        self._hash.update(encoded)
        view = memoryview(encoded)
        while view:
            view = view[os.write(1, view) :]

    def facts(self) -> dict[str, Any]:
        """How much was shown, and its digest."""
        return {"characters": self.characters, "sha256": self._hash.hexdigest()}


def _say(text: str) -> None:
    for line in text.splitlines():
        print(f"{PREFIX}{line}", file=sys.stderr, flush=True)


def run_job(record: str) -> dict[str, Any]:
    """Run one job to its end; gives the result's record.

    Args:
        record: The job as JSON.
    """
    job = json.loads(record)
    volumes = {item["name"]: modal.Volume.from_name(item["name"]) for item in job["volumes"]}
    for volume in volumes.values():
        volume.reload()
    live = _LiveText()
    writable = [volumes[item["name"]] for item in job["volumes"] if not item["read_only"]]

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "line":
            _say(event["text"])
        elif event["event"] == "state" and event["state"] == "running" and writable:
            # The record is on the volume from now on, for whoever looks for the run while it goes on.
            threading.Thread(target=_commit, args=(writable[:1],), daemon=True).start()

    supervisor = Supervisor(job, live=live.write, tell=tell)
    results: list[dict[str, Any]] = []
    done = threading.Event()

    def supervise() -> None:
        try:
            results.append(supervisor.run())
        finally:
            done.set()

    threading.Thread(target=supervise, name="supervisor").start()
    stopped: BaseException | None = None
    # Not Thread.join: interrupted by an exception it may take a running thread for ended (CPython 3.12 and before).
    while not done.is_set():
        try:
            done.wait()
        except BaseException as error:  # modal's InputCancellation, KeyboardInterrupt: any of them asks to stop
            reason = "the container ends" if isinstance(error, KeyboardInterrupt) else "cancelled"
            supervisor.request_stop("now" if stopped is not None else reason)
            stopped = error
    if not results:
        raise RuntimeError("the supervisor itself failed; its traceback is above")
    live.write(b"", final=True)
    result = results[0]
    result["live"] = live.facts()
    # On the volume as well: a call that was cancelled has no value.
    write_json(Path(job["run_dir"]) / "result.json", result)
    failure = _commit(writable)
    if failure is not None:
        _say(failure)
        # What the run wrote is not kept: that is no success, whatever its command said.
        result["detail"] = "\n".join(filter(None, [result.get("detail"), failure]))
        if result["state"] == "succeeded":
            result.update(state="failed", returncode=BROKEN)
    if stopped is not None:
        raise stopped
    return result


def _commit(volumes: list[modal.Volume]) -> str | None:
    """Commit volumes; gives what went wrong, None where nothing did."""
    failures = []
    for volume in volumes:
        try:
            volume.commit()
        except Exception as error:  # the result must be told, whatever the volume's server says
            failures.append(f"a volume could not be committed: {error}")
    return "; ".join(failures) or None
