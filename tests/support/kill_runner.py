"""Makes the runs of the kill table: a caller, its run, the kill, and another process that reads the result."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skyrl_modal.protocol.state import FailureCause, RunState
from tests.support.faults.client_processes import CallerProcess, ObserverProcess
from tests.support.kill_table import NOT_STARTED, SUCCEEDED, Cell, Ending, Finding, Phase, Target
from tests.support.processes import MARK, marked_processes, wait_for_marked_processes
from tests.support.run_processes import run_processes

REPOSITORY = Path(__file__).resolve().parents[2]
#: Seconds that a step may take. A Ray whose gcs_server was killed while it starts needs most of them.
STEP_TIMEOUT = 150.0
#: Seconds after which the command of a run that should have ended is ended.
CONTINUE_TIMEOUT = 20.0
#: The violation of a run in which nothing was killed.
NOT_FOUND = "the process was not found"
#: Number of runs of a cell until one is a violation in which nothing was killed.
MAX_TRIES = 3
#: Seconds of grace of a run that is cancelled.
GRACE = 2.0
#: The command waits until something is written to this pipe.
_PIPE = "/root/data/go"
_COMMANDS = {
    Phase.START: "exec sleep 5",
    Phase.COMMAND: f"mkfifo {_PIPE}; echo up; sh -c 'read _ < {_PIPE}'; exit $?",
    Phase.GRACE: f"trap '' INT TERM; mkfifo {_PIPE}; echo up; sh -c 'read _ < {_PIPE}'; exit $?",
    Phase.AFTER: "trap '' TERM; sleep 600 & trap - TERM; echo up; exit 0",
}


class KillEnvironment:
    """A separate environment, in which one run after another is made.

    Args:
        folder: Folder for all files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tmp = folder / "tmp"
        self._tmp.mkdir(parents=True)
        self._checkout = folder / "SkyRL"
        (self._checkout / "skyrl-gym").mkdir(parents=True)
        (self._checkout / "pyproject.toml").write_text('[project]\nname = "skyrl"\nversion = "0"\n')
        dropped = ("SKYRL_REPO_ROOT", "SKYRL_MODAL_BACKEND", "MODAL_GPU", "MODAL_APP_NAME", "RAY_ADDRESS")
        env = {name: value for name, value in os.environ.items() if name not in dropped}
        env |= {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("DATA", "STATE", "CACHE")}
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH")]))}
        env["TMPDIR"] = str(self._tmp)
        self._env = env
        self._observer = ObserverProcess(env, folder)

    def close(self) -> None:
        """Stop the process that reads the results."""
        self._observer.close()

    def run(self, cell: Cell) -> Finding:
        """Make the run of a cell, and check it.

        On a busy machine, the phase may be over when the process is looked for. The run is then made again.
        """
        for _ in range(MAX_TRIES):
            finding = self._run(cell)
            if NOT_FOUND not in finding.violations:
                break
        return finding

    def _run(self, cell: Cell) -> Finding:
        mark, volume = uuid.uuid4().hex, f"v-{uuid.uuid4().hex[:8]}"
        work = self._folder / f"case-{mark[:8]}"
        work.mkdir()
        fields: dict[str, Any] = {"grace": GRACE, "timeout": 600}
        if cell.nodes > 1:
            fields["nodes"] = cell.nodes
        parameters = {
            "backend": "local",
            "checkout": str(self._checkout),
            "volume": volume,
            "ray": cell.ray,
            "fields": fields,
            "command": _COMMANDS[cell.phase],
        }
        (work / "parameters.json").write_text(json.dumps(parameters))
        caller = CallerProcess(work / "parameters.json", work / "result.json", {**self._env, MARK: mark}, self._folder)
        try:
            return self._kill_and_check(cell, caller, mark, work, self._volume(volume))
        finally:
            caller.close()
            for pid in marked_processes(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_for_marked_processes(mark, 10)
            shutil.rmtree(work)
            for folder in (self._scratch, self._tmp):
                for path in _entries(folder):
                    shutil.rmtree(path, ignore_errors=True)

    @property
    def _scratch(self) -> Path:
        return self._folder / "cache" / "skyrl_modal" / "scratch"

    def _volume(self, name: str) -> Path:
        return self._folder / "data" / "skyrl_modal" / "volumes" / name

    # -- the kill ----------------------------------------------------------------------------------------------------

    def _kill_and_check(self, cell: Cell, caller: CallerProcess, mark: str, work: Path, volume: Path) -> Finding:
        violations: list[str] = []
        pid = self._wait_for_moment(cell, caller, mark)
        begin = time.monotonic()
        if pid is None:
            violations.append(NOT_FOUND)
        else:
            os.kill(pid, signal.SIGKILL)
        # The command ends if the run continues. Whether it does without one of Ray's helpers is Ray's decision.
        continues = cell.expected == (SUCCEEDED,)
        seconds = 0.0 if continues else 5.0 if SUCCEEDED in cell.expected else CONTINUE_TIMEOUT
        with contextlib.suppress(TimeoutError):
            _wait_until(lambda: not marked_processes(mark), seconds)
        _write_to_pipe(volume / "go")
        if caller.wait(STEP_TIMEOUT) is None:
            violations.append(f"the caller has not exited after {STEP_TIMEOUT:g} s")
            caller.close()
        left = wait_for_marked_processes(mark, 30)
        seconds = time.monotonic() - begin
        violations += [f"process {pid} is left: {command[:150]}" for pid, command in left.items()]
        ending, facts = self._ending(caller)
        if not any(ending == expected for expected in cell.expected):
            violations.append(f"{ending} instead of {' or '.join(map(str, cell.expected))}: {facts}")
        violations += self._caller_violations(cell, caller, work, ending)
        violations += self._leftovers()
        if violations:
            violations += [f"  {line[:200]}" for line in caller.messages.splitlines()[-12:]]
        return Finding(cell, str(ending), seconds, tuple(violations))

    def _wait_for_moment(self, cell: Cell, caller: CallerProcess, mark: str) -> int | None:
        """Wait for the phase of a cell. Return the process to kill; None if there is none."""
        if cell.phase is Phase.START:
            self._wait_for_start(cell, caller, mark)
        else:
            if not caller.wait_for_lines(1, STEP_TIMEOUT):
                return None
            if cell.phase is Phase.GRACE:
                answer = self._request("cancel", caller.run_id)
                if "error" in answer or not caller.wait_for_message("stopping the command", STEP_TIMEOUT):
                    return None
            elif cell.phase is Phase.AFTER:
                _wait_until(lambda: (Target.SHELL, 0) not in run_processes(mark), STEP_TIMEOUT)
        return self._find(cell, caller, mark)

    def _wait_for_start(self, cell: Cell, caller: CallerProcess, mark: str) -> None:
        # Ray's processes, and without Ray all, are killed as soon as they exist.
        wanted = (cell.target, cell.rank)
        if cell.target is Target.CALLER:
            wanted = (Target.SUPERVISOR, 0)
        if cell.ray and cell.target in (
            Target.CALLER, Target.WRAPPER, Target.CLEANER, Target.BUBBLEWRAP, Target.SUPERVISOR
        ):  # fmt: skip
            wanted = (Target.RAY_START, cell.rank)
        with contextlib.suppress(TimeoutError):
            _wait_until(lambda: wanted in run_processes(mark) or caller.process.poll() is not None, STEP_TIMEOUT)

    def _find(self, cell: Cell, caller: CallerProcess, mark: str) -> int | None:
        if cell.target is Target.CALLER:
            return caller.process.pid
        found: list[int] = []

        def find() -> bool:
            found.extend(pid for key, pid in run_processes(mark).items() if key == (cell.target, cell.rank))
            return bool(found)

        # The cleanup shell starts after the supervisor, and some of Ray's helpers start after Ray is ready.
        with contextlib.suppress(TimeoutError):
            _wait_until(find, 20.0 if cell.phase is Phase.COMMAND else 1.0)
        return found[0] if found else None

    # -- the checks --------------------------------------------------------------------------------------------------

    def _request(self, action: str, run_id: str) -> dict[str, Any]:
        return self._observer.request(
            2 * STEP_TIMEOUT, action=action, run_id=run_id, start_timeout=5.0, timeout=STEP_TIMEOUT, follow=False
        )

    def _ending(self, caller: CallerProcess) -> tuple[Ending, object]:
        """Return how the run ended according to another process of the user."""
        observed = self._request("wait", caller.run_id) if caller.run_id else {"found": False}
        if not observed["found"]:
            return NOT_STARTED, observed
        if "error" in observed:
            return Ending(RunState.UNKNOWN), observed["error"]
        cause = None if observed["cause"] is None else FailureCause(observed["cause"])
        ending = Ending(RunState(observed["state"]), observed["returncode"], cause)
        if observed["state_now"] != observed["state"]:
            return Ending(RunState.UNKNOWN), observed
        return ending, observed["detail"]

    def _caller_violations(self, cell: Cell, caller: CallerProcess, work: Path, ending: Ending) -> Iterator[str]:
        """Compare what the caller returned."""
        if cell.target is Target.CALLER:
            return
        result = work / "result.json"
        returned = json.loads(result.read_text()) if result.exists() else None
        if ending.state is None:
            if returned is not None or "BackendUnavailable" not in caller.messages:
                yield f"the run was not started, but the caller returned {returned}"
        elif returned is None:
            yield "Launcher.run did not return"
        elif (returned["state"], returned["returncode"], returned["cause"]) != (
            ending.state, ending.returncode, ending.cause
        ):  # fmt: skip
            yield f"the caller returned {returned}"

    def _leftovers(self) -> Iterator[str]:
        for path in _entries(self._scratch):
            yield f"scratch folder {path.name} is left"
        for path in _entries(self._tmp):
            yield f"temporary file {path.name} is left"
        for path in (self._folder / "state").rglob("*"):
            if path.is_file() and _is_locked(path):
                yield f"{path.name} is locked"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if str(self._folder) in line:
                yield f"a mount is left: {line}"


def _is_locked(path: Path) -> bool:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _write_to_pipe(path: Path) -> None:
    """Write a line to a named pipe, if a process reads it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(descriptor, b"go\n")
        finally:
            os.close(descriptor)


def _wait_until(condition: Any, timeout: float) -> None:
    """Wait for a state of other processes, for which there is no event."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise TimeoutError
        time.sleep(0.003)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
