"""The function that Modal calls: the supervisor between a reload and a commit of the volumes.

It is registered by its module's name and never pickled, so the caller's Python and the image's need not be the same.
Modal's ways to stop a function are exceptions in its main thread (a cancelled input; SIGINT for a preemption, or as an
app ends). So the supervisor has a thread of its own, and the main thread only waits and turns each into a request.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import platform
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import modal

from skyrl_modal.container.environment import local_gpus
from skyrl_modal.container.gate import Gate
from skyrl_modal.container.rank_connections import Hub, listen
from skyrl_modal.container.rank_worker import Worker
from skyrl_modal.container.supervisor import BROKEN, Supervisor, write_json
from skyrl_modal.event_queue import Events, wait_for
from skyrl_modal.protocol.rank_config import Place

T = TypeVar("T")

#: What our own lines on standard error begin with; standard output is the command's alone.
PREFIX = "skyrl-modal | "


#: On which rank 0 of a cluster listens for the others.
CONTROL_PORT = 6378
#: The detail of a run that was stopped because its container ends: preempted, or its app is over.
ENDS = "the container ends"
#: Seconds that Modal gets to end what is left of a cluster that it starts anew.
RESTART = 60.0
#: Seconds that the other ranks get to join, and to end, where rank 0 has nothing to do but tell that a run is lost.
DISMISSED = 15.0
#: What is said of a container that died while the command ran, and of which nothing else is known.
DIED = "the container died while the command ran (out of memory, or its machine failed), and left no result"


class _LiveText:
    """The command's output as text for Modal's logs, counted, so that the caller can tell whether it got all of it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._hash = hashlib.sha256()
        self.characters = 0

    def count(self, data: bytes, final: bool = False) -> bytes:
        """Count bytes as shown; a character that is not whole yet waits for the rest of it. Gives what to show."""
        text = self._decoder.decode(data, final)
        self.characters += len(text)
        encoded = text.encode()
        self._hash.update(encoded)
        return encoded

    def write(self, data: bytes, final: bool = False) -> None:
        """Show bytes."""
        view = memoryview(self.count(data, final))
        while view:
            view = view[os.write(1, view) :]

    def facts(self) -> dict[str, Any]:
        """How much was shown, and its digest."""
        return {"characters": self.characters, "sha256": self._hash.hexdigest()}


def _say(text: str) -> None:
    for line in text.splitlines():
        print(f"{PREFIX}{line}", file=sys.stderr, flush=True)


def run_job(
    record: str, links: Mapping[str, Mapping[str, str]] | None = None, token: str = ""
) -> dict[str, Any] | None:
    """Run one job to its end; gives the result's record, on ranks other than 0 None.

    Modal calls it again on the same input where a container was preempted or died. Then it goes on in the same record.

    Args:
        record: The job as JSON.
        links: For each mount's path the symbolic links in it, which Modal's upload does not carry, with their targets.
        token: By which the ranks of a cluster know each other.
    """
    job = json.loads(record)
    volumes = {item["name"]: modal.Volume.from_name(item["name"]) for item in job["volumes"]}
    for volume in volumes.values():
        volume.reload()
    writable = [volumes[item["name"]] for item in job["volumes"] if not item["read_only"]]
    run_dir, live, committing = Path(job["run_dir"]), _LiveText(), threading.Lock()
    place = _place(job, token)
    which = f", rank {place.rank} of {place.nodes}" if place.nodes > 1 else ""
    task = os.environ.get("MODAL_TASK_ID", "no task")
    _say(f"the container is up: Python {platform.python_version()}, {task}{which}")
    if place.rank:
        # Where the run is over already, rank 0 only tells so, and is nobody to join.
        if not _is_over(_read_json(run_dir / "result.json")):
            _make_all_links(links)
            _run_worker(job, place, writable)
        return None
    earlier = _Earlier(run_dir)
    for chunk in earlier.output():
        live.count(chunk)
    if earlier.result is not None:
        return earlier.result
    if earlier.has_died and earlier.attempts > job["retries"]:
        _say(DIED)
        lost = {**earlier.lost(job["id"]), "live": live.facts()}
        write_json(run_dir / "result.json", lost)
        _commit(writable, committing)
        _dismiss(place)
        return lost
    _make_all_links(links)
    if job["gpus"] is None:
        job["gpus"] = place.gpus if place.gpus is not None else _count_gpus()

    early: list[threading.Thread] = []

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "line":
            _say(event["text"])
        elif event["event"] == "state" and writable:
            # The record is on the volume from now on, for whoever looks for the run while it goes on. The command waits
            # for that: a container that dies before is one that has not begun it.
            if event["state"] == "running":
                _commit(writable[:1], committing)
                return
            early.append(threading.Thread(target=_commit, args=(writable[:1], committing), daemon=True))
            early[-1].start()

    with contextlib.ExitStack() as tunnels:
        supervisor = Supervisor(
            job,
            live=live.write,
            tell=tell,
            place=place,
            open_url=lambda port: _open_url(port, tunnels),
            attempts=earlier.attempts_before,
            note=earlier.note,
        )
        result, stopped = _beside(supervisor.run, supervisor.request_stop)
    live.write(b"", final=True)
    result["live"] = live.facts()
    try:
        # On the volume as well: a call that was cancelled has no value.
        write_json(run_dir / "result.json", result)
    except OSError as error:
        _say(f"result.json could not be written: {error}")
    for thread in early:
        thread.join()  # a commit that came after the last one could fail unseen
    failure = _commit(writable, committing)
    if failure is not None:
        _say(failure)
        # What the run wrote is not kept: that is no success, whatever its command said.
        result["detail"] = "\n".join(filter(None, [result.get("detail"), failure]))
        if result["state"] == "succeeded":
            result.update(state="failed", returncode=BROKEN)
    if stopped is None and (result["restart"] or _was_preempted(result)):
        # A container of the cluster is gone, or is about to. Modal ends the others as well, and starts all anew.
        stopped = _await_end(RESTART)
    if stopped is not None:
        raise stopped
    return result


def _open_url(port: int, tunnels: contextlib.ExitStack) -> str:
    """A public URL of a port here. Whoever knows it gets in: its token is what a stranger does not know."""
    gate = Gate(port, token=secrets.token_urlsafe(24), https=True)
    gate.start()
    tunnels.callback(gate.close)
    tunnel = tunnels.enter_context(modal.forward(gate.port))
    return f"{tunnel.url}/{gate.query}"


def _was_preempted(result: Mapping[str, Any]) -> bool:
    return result.get("detail") == ENDS and result.get("state") == "cancelled"


def _dismiss(place: Place) -> None:
    """Tell the other ranks of a run that is not gone on with to end; they may have seen that by themselves."""
    if place.nodes == 1:
        return
    told: Events[tuple[str, Any]] = Events()
    hub = Hub(listen(place.port), token=place.token, nodes=place.nodes, on_event=lambda *event: told.put(event))
    deadline, left = time.monotonic() + DISMISSED, place.nodes - 1
    with contextlib.suppress(queue.Empty):
        while left:
            kind, value = told.next(deadline)
            if kind == "rank-joined":
                hub.send(value[0], {"kind": "end"})
            left -= kind == "rank-gone"
    hub.close()


def _is_over(result: Mapping[str, Any]) -> bool:
    """Whether an earlier container's result is the run's, and not one that another container goes on from."""
    return bool(result) and not _was_preempted(result) and not result.get("restart")


def _await_end(seconds: float) -> BaseException | None:
    """Wait until Modal ends this container; gives what it raised, None where it does not."""
    try:
        wait_for(threading.Event().wait, seconds)
    except BaseException as error:
        return error
    return None


def _run_worker(job: Mapping[str, Any], place: Place, writable: list[modal.Volume]) -> None:
    """Run a rank other than 0 to its end; rank 0 waits until its volumes are committed."""
    worker = Worker(job, place, say=lambda text: _say(f"rank {place.rank}: {text}"))
    try:
        # However often Modal says so: rank 0, which hears of it as well, decides how long its command may save.
        _, stopped = _beside(worker.run, lambda reason: None if reason == "now" else worker.request_stop(reason))
        failure = _commit(writable, threading.Lock())
        if failure is not None:
            worker.say(failure)
    finally:
        worker.leave()
    if stopped is not None:
        raise stopped


def _beside(run: Callable[[], T], request_stop: Callable[[str], None]) -> tuple[T, BaseException | None]:
    """Run something in a thread of its own, and turn what Modal raises in this one into requests to stop.

    Returns:
        What it gave, and the last exception that asked it to stop.
    """
    results: list[T] = []
    done = threading.Event()

    def work() -> None:
        try:
            results.append(run())
        finally:
            done.set()

    threading.Thread(target=work, name="supervisor").start()
    stopped: BaseException | None = None
    # Not Thread.join: interrupted by an exception it may take a running thread for ended (CPython 3.12 and before).
    while True:
        try:
            wait_for(done.wait)
            break
        except BaseException as error:  # modal's InputCancellation, KeyboardInterrupt: any of them asks to stop
            reason = ENDS if isinstance(error, KeyboardInterrupt) else "cancelled"
            request_stop("now" if stopped is not None else reason)
            stopped = error
    if not results:
        raise RuntimeError("the supervisor itself failed; its traceback is above")
    return results[0], stopped


def _place(job: Mapping[str, Any], token: str) -> Place:
    """Where this container stands in the run's cluster."""
    gpus = _count_gpus() if job["ray"] is not None and job["gpus"] != 0 else None
    if job["nodes"] == 1:
        return Place(gpus=gpus)
    cluster = modal.Cluster.from_context()
    addresses = tuple(cluster.container_ips(family="ipv4"))
    # Beside Ray's own port, wherever that one is.
    port = CONTROL_PORT if job["ray"] is None or job["ray"]["port"] != CONTROL_PORT else CONTROL_PORT - 1
    return Place(rank=cluster.container_rank(), addresses=addresses, port=port, token=token, gpus=gpus)


class _Earlier:
    """What an earlier container left of the same run, if there was one."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        state, result = _read_json(run_dir / "state.json"), _read_json(run_dir / "result.json")
        #: Attempts that were begun.
        self.attempts = int(state.get("attempt", 0))
        was_preempted, wants_restart = _was_preempted(result), bool(result.get("restart"))
        #: The result, where the earlier container had come to one and only could not tell it.
        self.result = result if _is_over(result) else None
        self.has_died = wants_restart or (self.attempts > 0 and not result)
        self.note = ""
        if was_preempted:
            self.note = "Modal has moved the run to another container; starting again"
        elif wants_restart:
            cause = result["detail"].partition("\n")[0]
            self.note = f"attempt {self.attempts} ended with exit code {result['returncode']}: {cause}; starting again"
        elif self.has_died:
            self.note = f"attempt {self.attempts} ended: {DIED}; starting again"
        if was_preempted or wants_restart:
            # It is not over: nobody may take it for ended.
            (run_dir / "result.json").unlink()

    @property
    def attempts_before(self) -> int:
        """Attempts that count: one that was preempted is gone on with."""
        return self.attempts if self.has_died else max(0, self.attempts - 1)

    def output(self) -> Iterator[bytes]:
        """The output that it left."""
        path = self._run_dir / "output.log"
        if path.exists():
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    yield chunk

    def lost(self, run_id: str) -> dict[str, Any]:
        """The result of a run whose container died."""
        started_at = datetime.fromtimestamp((self._run_dir / "job.json").stat().st_mtime, UTC)
        return {
            "version": 1,
            "run_id": run_id,
            "state": "lost",
            "returncode": BROKEN,
            "attempts": self.attempts,
            "started_at": started_at.isoformat(),
            "duration": (datetime.now(UTC) - started_at).total_seconds(),
            "detail": DIED,
        }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def _make_all_links(links: Mapping[str, Mapping[str, str]] | None) -> None:
    for folder, targets in (links or {}).items():
        for name, target in targets.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(target)


def _count_gpus() -> int:
    """GPUs of this container, as the driver's own tool lists them."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return local_gpus()
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def _commit(volumes: list[modal.Volume], one_at_a_time: threading.Lock) -> str | None:
    """Commit volumes; gives what went wrong, None where nothing did."""
    failures = []
    for volume in volumes:
        try:
            with one_at_a_time:
                volume.commit()
        except Exception as error:  # the result must be told, whatever the volume's server says
            failures.append(f"a volume could not be committed: {error}")
    return "; ".join(failures) or None
