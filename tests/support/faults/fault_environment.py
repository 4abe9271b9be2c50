"""A separate environment for the runs of the campaign: folders, a control plane, and the processes that take part."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from modal_proto import api_pb2

from skyrl_modal.protocol.run_folder import RunFolder
from tests.support.loopback import LoopbackModal
from tests.support.processes import MARK, marked_processes, wait_for_marked_processes

from .cases import RAY_FAULTS, Case
from .checks import Finding, Observation, check
from .client_processes import CallerProcess, ObserverProcess
from .injection import ALL_COMMITS, STEP_TIMEOUT, Injection, inject

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
#: Seconds after a cancel until no process may be left, whatever the command does.
CANCEL_TIMEOUT = 10.0
RECORD_FILES = frozenset(
    {"job.json", "state.json", "output.log", "output.end", "output.times", "result.json", "logs", "usage.json"}
)


class FaultEnvironment:
    """Makes one run after another, each with one fault, and checks it.

    Args:
        folder: Folder for all files.
        timeout_factor: Factor of all timeouts.
        client_timeout: Seconds without a heartbeat after which the control plane stops a client's app.
    """

    def __init__(self, folder: Path, *, timeout_factor: float = 1.0, client_timeout: float = 8.0) -> None:
        self.folder = folder
        self.timeout = STEP_TIMEOUT * timeout_factor
        self.end_timeout = CANCEL_TIMEOUT * timeout_factor
        self._client_timeout = client_timeout * timeout_factor
        self._server: LoopbackModal | None = None
        self._observers: dict[str, ObserverProcess] = {}
        self._tmp = folder / "tmp"
        self._tmp.mkdir(parents=True)
        self._checkout = folder / "SkyRL"
        (self._checkout / "skyrl-gym").mkdir(parents=True)
        (self._checkout / "pyproject.toml").write_text('[project]\nname = "skyrl"\nversion = "0"\n')
        shutil.copy(HERE / "stream.py", self._checkout)

    @property
    def server(self) -> LoopbackModal:
        """The control plane; started at the first use."""
        if self._server is None:
            self._server = LoopbackModal(
                self.folder / "modal", client_timeout=self._client_timeout, heartbeat=0.5, scaledown=1
            )
        return self._server

    @property
    def can_mount(self) -> bool:
        """Whether a small file system can be mounted, to be filled."""
        return os.geteuid() == 0

    def close(self) -> None:
        """Stop the observers and the control plane."""
        for observer in self._observers.values():
            observer.close()
        if self._server is not None:
            self._server.close()

    def request(self, case: Case, run_id: str, action: str, **options: Any) -> dict[str, Any]:
        """Send a request about a run to the observer. The answer has the key "error" if it failed."""
        options = {"start_timeout": 0.0, "timeout": self.timeout, "follow": False, **options}
        try:
            return self._observer(case.backend).request(2 * self.timeout, action=action, run_id=run_id, **options)
        except (TimeoutError, ValueError, OSError) as error:
            self._observers.pop(case.backend).close()
            return {"found": True, "error": f"{action}: {error}"}

    def local_volume(self, name: str) -> Path:
        """Return the folder of a volume of the local backend."""
        return self.folder / "data" / "skyrl_modal" / "volumes" / name

    def index_entry(self, run_id: str) -> dict[str, Any]:
        """Return the caller's record of a run."""
        path = self.folder / "state" / "skyrl_modal" / "index" / f"{run_id}.json"
        entry: dict[str, Any] = json.loads(path.read_text())
        return entry

    def _env(self, backend: str) -> dict[str, str]:
        dropped = ("SKYRL_REPO_ROOT", "SKYRL_MODAL_BACKEND", "MODAL_GPU", "MODAL_APP_NAME", "RAY_ADDRESS")
        env = {name: value for name, value in os.environ.items() if name not in dropped}
        env |= {f"XDG_{name}_HOME": str(self.folder / name.lower()) for name in ("DATA", "STATE", "CACHE")}
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH")]))}
        env["TMPDIR"] = str(self._tmp)
        return env | (self.server.env() if backend == "modal" else {})

    def _observer(self, backend: str) -> ObserverProcess:
        if backend not in self._observers:
            self._observers[backend] = ObserverProcess(self._env(backend), self.folder)
        return self._observers[backend]

    # -- one run -----------------------------------------------------------------------------------------------------

    def run(self, case: Case) -> Finding:
        """Make the run of a case, and check it."""
        if (case.fault, case.backend) == ("full volume", "local") and not self.can_mount:
            return Finding(case, "needs root", ())
        mark, volume = uuid.uuid4().hex, f"v{case.number}-{uuid.uuid4().hex[:6]}"
        work = self._write_parameters(case, mark, volume)
        errors = self._prepare_server(case, mark)
        injection = Injection()
        with self._mounted_volume(case, volume) as folder:
            env = {**self._env(case.backend), MARK: mark}
            caller = CallerProcess(work / "parameters.json", work / "result.json", env, self.folder)
            try:
                try:
                    inject(self, case, caller, volume, mark, injection)
                except (OSError, RuntimeError, TimeoutError, ValueError) as error:
                    injection.failure = f"the fault could not be injected: {error!r}"
                leftovers = self._wait_for_end(case, caller, mark, injection)
                if injection.count and (case.fault, case.backend) == ("full volume", "modal"):
                    # The caller may still have been running although the run had committed everything.
                    failed = self.server.plane.volumes.find(volume, "main").fail_commits < ALL_COMMITS
                    injection.count = int(failed)
                observation = self._observe(case, caller, folder, work, injection, leftovers)
            finally:
                caller.close()
                self._remove(mark)
                if case.backend == "modal":
                    self.server.faults.clear()
        if case.backend == "modal":
            failures = [*map(repr, self.server.errors), *self.server.unimplemented][errors:]
            leftovers = [*observation.leftovers, *(f"error in the loopback itself: {text}" for text in failures)]
            observation = attrs.evolve(observation, leftovers=tuple(leftovers))
        return check(case, observation)

    def _write_parameters(self, case: Case, mark: str, volume: str) -> Path:
        """Write the caller's parameters to a new folder, and return the folder."""
        work = self.folder / f"case-{case.number}-{mark[:6]}"
        work.mkdir()
        parameters = {
            "backend": case.backend,
            "checkout": str(self._checkout),
            "volume": volume,
            "ray": case.fault in RAY_FAULTS,
            "fields": case.fields,
            "command": case.command,
        }
        (work / "parameters.json").write_text(json.dumps(parameters))
        return work

    def _prepare_server(self, case: Case, mark: str) -> int:
        """Configure the control plane for a case, and return the number of its errors so far."""
        if case.backend != "modal":
            return 0
        self.server.plane.container_env[MARK] = mark
        kills_container = case.fault in ("supervisor SIGKILL", "rank 1 SIGKILL", "Ctrl-C twice")
        self.server.plane.background_commits = 0.5 if kills_container else None
        return len(self.server.errors) + len(self.server.unimplemented)

    @contextlib.contextmanager
    def _mounted_volume(self, case: Case, name: str) -> Iterator[Path]:
        """Return the folder that has the volume's files after the run; on Modal it is created by the run."""
        folder = self.local_volume(name)
        if case.backend == "modal" or case.fault != "full volume":
            yield folder
            return
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)

    # -- after the run -----------------------------------------------------------------------------------------------

    def _wait_for_end(self, case: Case, caller: CallerProcess, mark: str, injection: Injection) -> list[str]:
        """Wait until all processes have exited, and describe those that have not."""
        left = [injection.failure] if injection.failure else []
        if caller.wait(self.timeout) is None:
            left.append(f"the caller has not exited within {self.timeout:g} s")
            caller.close()
        # The caller may exit before its run: wait for the run's processes too.
        for pid, command in wait_for_marked_processes(mark, self.timeout).items():
            left.append(f"process {pid} is left: {command[:200]}")
        if case.fault == "cancel process tree":
            seconds = time.monotonic() - injection.time
            if seconds > self.end_timeout:
                left.append(f"processes were left for {seconds:.1f} s after the cancel")
        return left

    def _observe(
        self, case: Case, caller: CallerProcess, folder: Path, work: Path, injection: Injection, leftovers: list[str]
    ) -> Observation:
        run_id, left = caller.run_id, list(leftovers)
        follow = case.number % 2 == 0
        observed = self.request(case, run_id, "wait", follow=follow) if run_id else {"found": False}
        if case.backend == "modal":
            with contextlib.suppress(Exception):  # there is no volume if the run ended before it was created
                folder = self.server.volume(_volume_name(work))
            left += self._left_on_modal()
        records = folder / ".skyrl_modal" / "runs" / run_id
        left += self._left_files(case, records)
        # The file is empty if the command was killed before it had written it.
        if (folder / "port").exists() and (port := (folder / "port").read_text()):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    left.append(f"port {port} is open")
        log, result = records / "output.log", work / "result.json"
        return Observation(
            caller=caller.process.returncode,
            output=caller.output,
            messages=caller.messages,
            returned=json.loads(result.read_text()) if result.exists() else None,
            observed=observed if observed["found"] else None,
            log=log.read_bytes() if log.exists() else None,
            record=RunFolder(records).read_result(),
            injected=injection.count,
            leftovers=tuple(left),
        )

    def _left_files(self, case: Case, records: Path) -> list[str]:
        """Describe files that should have been removed."""
        left = []
        # A caller that is killed while it starts a run may leave a scratch folder, which the next start removes.
        if not (case.is_early and case.fault in ("client SIGKILL", "client SIGTERM")):
            scratch = self.folder / "cache" / "skyrl_modal" / "scratch"
            left += [f"scratch folder {path.name} is left" for path in _entries(scratch)]
        left += [f"temporary file {path.name} is left" for path in _entries(self._tmp)]
        left += [
            f"file {path.name} is left in the run folder" for path in _entries(records) if path.name not in RECORD_FILES
        ]
        return left

    def _left_on_modal(self) -> list[str]:
        """Describe apps and containers that have not ended."""
        plane, stopped = self.server.plane, api_pb2.APP_STATE_STOPPED
        try:
            self.server.wait_until(lambda: all(a.state == stopped for a in plane.apps.apps.values()), self.timeout)
            self.server.wait_for_no_container(self.timeout)
        except TimeoutError:
            apps = [app.id for app in self.server.apps if app.state != stopped]
            return [f"apps {apps} and containers {[c.id for c in self.server.containers()]} are still running"]
        return []

    def _remove(self, mark: str) -> None:
        """Kill remaining processes and remove temporary files, so that they do not affect the next run."""
        for pid in marked_processes(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in _entries(self._tmp):
            shutil.rmtree(path, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _volume_name(work: Path) -> str:
    name: str = json.loads((work / "parameters.json").read_text())["volume"]
    return name
