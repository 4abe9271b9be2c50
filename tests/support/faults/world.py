"""A place for one run at a time: folders of its own, a Modal of its own, and the processes that take part."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import attrs
from modal_proto import api_pb2

from tests.support.loopback import LoopbackModal
from tests.support.loopback.records import Container
from tests.support.processes import MARK, marked_processes, supervisors, wait_for_none

from .cases import Case
from .checks import MOVED, Finding, Seen, judge

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
#: Seconds, times the patience, that anything may take which has no limit of its own.
LONG = 90.0
#: How many commits fail on a volume that takes none any more.
ALWAYS = 1 << 30
#: Seconds after a cancel in which nothing may be left, whatever the command does about it.
SOON = 10.0


class Caller:
    """The process that calls ``Launcher.run``, and what it shows."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path) -> None:
        self._changed = threading.Condition()
        self._out, self._err = bytearray(), bytearray()
        self._newlines = 0
        self.process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._out), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[bytes], into: bytearray) -> None:
        with stream:
            while data := os.read(stream.fileno(), 1 << 16):
                with self._changed:
                    into += data
                    if into is self._out:
                        self._newlines += data.count(b"\n")
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], object], seconds: float) -> bool:
        with self._changed:
            ended = self._changed.wait_for(
                lambda: condition() or not any(reader.is_alive() for reader in self._readers), seconds
            )
            return bool(ended and condition())

    def wait_lines(self, count: int, seconds: float) -> bool:
        """Wait until so many lines of output were shown; False where it ended before, or time is over."""
        return self._wait(lambda: self._newlines >= count, seconds)

    def wait_after(self, mark: bytes, times: int, seconds: float) -> bool:
        """Wait until a mark was shown so often, and some lines after it."""

        def is_there() -> bool:
            _, *after = self._out.split(mark)
            return len(after) == times and after[-1].count(b"\n") > 2

        return self._wait(is_there, seconds)

    def wait_said(self, text: str, seconds: float) -> bool:
        """Wait until it has said something of its own."""
        return self._wait(lambda: text.encode() in self._err, seconds)

    @property
    def run_id(self) -> str:
        """The run's id, once the first line of ours is there."""
        for line in self.said.splitlines():
            words = line.split()
            if words[:3] == ["skyrl-modal", "|", "run"]:
                return words[3].rstrip(":")
        return ""

    @property
    def shown(self) -> bytes:
        with self._changed:
            return bytes(self._out)

    @property
    def said(self) -> str:
        with self._changed:
            return self._err.decode("utf-8", "replace")

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self, seconds: float) -> int | None:
        """Wait for its end and the rest of what it shows; None where it does not end."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        for reader in self._readers:
            reader.join(seconds)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.send_signal(signal.SIGCONT)
        self.process.wait()
        for reader in self._readers:
            reader.join(5)


class Observer:
    """Another process of the same user's."""

    def __init__(self, env: dict[str, str], cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faults.observer"],
            env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, seconds: float, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write((json.dumps(question) + "\n").encode())
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"no answer within {seconds:g} s")
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@attrs.define
class Strike:
    """What the fault did: how often it came, when, and what it could not do."""

    struck: int = 0
    at: float = 0.0
    failure: str = ""


class World:
    """Folders, a control plane and an observer, for one run after another."""

    def __init__(self, folder: Path, *, patience: float = 1.0, client_timeout: float = 8.0) -> None:
        self._folder = folder
        self._patience = patience
        self._client_timeout = client_timeout * patience
        self._server: LoopbackModal | None = None
        self._observers: dict[str, Observer] = {}
        self._tmp = folder / "tmp"
        self._tmp.mkdir(parents=True)
        self._checkout = folder / "SkyRL"
        (self._checkout / "skyrl-gym").mkdir(parents=True)
        (self._checkout / "pyproject.toml").write_text('[project]\nname = "skyrl"\nversion = "0"\n')
        shutil.copy(HERE / "stream.py", self._checkout)

    @property
    def server(self) -> LoopbackModal:
        if self._server is None:
            self._server = LoopbackModal(
                self._folder / "modal", client_timeout=self._client_timeout, heartbeat=0.5, scaledown=1
            )
        return self._server

    def _env(self, backend: str) -> dict[str, str]:
        dropped = ("SKYRL_REPO_ROOT", "SKYRL_MODAL_BACKEND", "MODAL_GPU", "MODAL_APP_NAME", "RAY_ADDRESS")
        env = {name: value for name, value in os.environ.items() if name not in dropped}
        env |= {f"XDG_{name}_HOME": str(self._folder / name.lower()) for name in ("DATA", "STATE", "CACHE")}
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH")]))}
        env["TMPDIR"] = str(self._tmp)
        return env | (self.server.env() if backend == "modal" else {})

    def _observer(self, backend: str) -> Observer:
        if backend not in self._observers:
            self._observers[backend] = Observer(self._env(backend), self._folder)
        return self._observers[backend]

    def _ask(self, case: Case, run_id: str, what: str, **question: Any) -> dict[str, Any]:
        seconds = LONG * self._patience
        question = {"patience": 0.0, "timeout": seconds, "follow": False, **question}
        try:
            return self._observer(case.backend).ask(2 * seconds, do=what, run_id=run_id, **question)
        except (TimeoutError, ValueError, OSError) as error:
            self._observers.pop(case.backend).close()
            return {"found": True, "error": f"{what}: {error}"}

    def close(self) -> None:
        for observer in self._observers.values():
            observer.close()
        if self._server is not None:
            self._server.close()

    @property
    def can_mount(self) -> bool:
        """Whether a small file system can be had, to be filled."""
        return os.geteuid() == 0

    # -- one run -----------------------------------------------------------------------------------------------------

    def run(self, case: Case) -> Finding:
        """Run a case, and judge it."""
        if (case.fault, case.backend) == ("full volume", "local") and not self.can_mount:
            return Finding(case, "needs root", ())
        mark, volume = uuid.uuid4().hex, f"v{case.number}-{uuid.uuid4().hex[:6]}"
        env = {**self._env(case.backend), MARK: mark}
        work = self._folder / f"case-{case.number}-{mark[:6]}"
        work.mkdir()
        facts = {
            "backend": case.backend,
            "checkout": str(self._checkout),
            "volume": volume,
            "ray": case.fault == "raylet SIGKILL",
            "fields": case.fields,
            "command": case.command,
        }
        (work / "facts.json").write_text(json.dumps(facts))
        errors = 0
        if case.backend == "modal":
            self.server.plane.container_env[MARK] = mark
            killing = case.fault in ("supervisor SIGKILL", "rank 1 SIGKILL", "Ctrl-C twice")
            self.server.plane.background_commits = 0.5 if killing else None
            errors = len(self.server.errors) + len(self.server.unimplemented)
        strike = Strike()
        with self._volume(case, volume) as folder:
            argv = [
                sys.executable,
                "-m",
                "tests.support.faults.caller",
                str(work / "facts.json"),
                str(work / "told.json"),
            ]
            caller = Caller(argv, env, self._folder)
            try:
                try:
                    self._strike(case, caller, volume, mark, strike)
                except (OSError, RuntimeError, TimeoutError, ValueError) as error:
                    strike.failure = f"the fault could not be made: {error!r}"
                leftovers = self._watch_end(case, caller, mark, strike)
                if strike.struck and (case.fault, case.backend) == ("full volume", "modal"):
                    # A caller may still be there where its run has committed all.
                    strike.struck = int(self.server.plane.volumes.find(volume, "main").fail_commits < ALWAYS)
                seen = self._look(case, caller, folder, work, strike, leftovers)
            finally:
                caller.close()
                self._remove(mark)
                if case.backend == "modal":
                    self.server.faults.clear()
        if case.backend == "modal":
            wrong = [*map(repr, self.server.errors), *self.server.unimplemented][errors:]
            seen = attrs.evolve(seen, leftovers=(*seen.leftovers, *(f"the loopback itself: {e}" for e in wrong)))
        return judge(case, seen)

    @contextlib.contextmanager
    def _volume(self, case: Case, name: str) -> Iterator[Path]:
        """The folder that has the volume's files afterwards."""
        if case.backend == "modal":
            yield self._folder  # looked up when the run has made it
            return
        folder = self._folder / "data" / "skyrl_modal" / "volumes" / name
        if case.fault != "full volume":
            yield folder
            return
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)

    def _strike(self, case: Case, caller: Caller, volume: str, mark: str, strike: Strike) -> None:
        """Wait for the moment, and let the fault happen."""
        seconds = LONG * self._patience
        if case.fault in ("none", "time-out"):
            return
        if case.is_early:
            caller.wait_said("| run ", seconds)
        else:
            caller.wait_lines(case.moment, seconds)
        time.sleep(case.delay)  # the rest of the random moment
        strike.struck, strike.at = int(caller.process.poll() is None), time.monotonic()
        match case.fault:
            case "client SIGKILL":
                caller.signal(signal.SIGKILL)
            case "client SIGTERM":
                caller.signal(signal.SIGTERM)
            case "client stopped":
                caller.signal(signal.SIGSTOP)
                time.sleep(min(case.again, 2.5))
                caller.signal(signal.SIGCONT)
            case "Ctrl-C":
                caller.signal(signal.SIGINT)
            case "Ctrl-C twice":
                caller.signal(signal.SIGINT)
                time.sleep(case.again / 3)
                caller.signal(signal.SIGINT)
            case "cancel" | "cancel a tree":
                answer = self._ask(case, caller.run_id, "cancel", patience=seconds)
                if "error" in answer:
                    strike.failure = f"cancel failed: {answer['error']}"
            case "supervisor SIGKILL" if case.backend == "local":
                index = self._folder / "state" / "skyrl_modal" / "index" / f"{caller.run_id}.json"
                os.kill(json.loads(index.read_text())["handle"]["pid"], signal.SIGKILL)
            case "supervisor SIGKILL":
                self.server.kill(self._container(0))
            case "rank 1 SIGKILL" if case.backend == "local":
                [rank] = supervisors(mark)[1]
                os.kill(rank, signal.SIGKILL)
            case "rank 1 SIGKILL":
                self.server.kill(self._container(1))
            case "raylet SIGKILL":
                [raylet] = [pid for pid in marked_processes(mark) if _program(pid) == "raylet"]
                os.kill(raylet, signal.SIGKILL)
            case "full volume" if case.backend == "modal":
                self.server.fail_commits(volume, times=ALWAYS)
            case "full volume":
                _fill(self._folder / "data" / "skyrl_modal" / "volumes" / volume)
            case "dropped stream":
                strike.struck = 0
                for number in range(case.times):
                    caller.wait_lines(case.moment + 3 * number, seconds)
                    strike.struck += self.server.faults.drop_log_streams()
            case "UNAVAILABLE":
                self.server.faults.unavailable(case.again)
            case "offline":
                with self.server.offline():
                    time.sleep(case.again)
            case "preemption":
                strike.struck = 0
                for number in range(case.times):
                    # Again where it goes on, as soon as it has printed something there.
                    if number and not caller.wait_after(MOVED, number, seconds):
                        break
                    busy = self._container(0)
                    if busy is None or busy.retiring:  # it has ended meanwhile
                        break
                    self.server.preempt(busy)
                    strike.struck += 1

    def _container(self, rank: int) -> Container | None:
        """The container that a rank is in; None where it has ended, or is not busy yet."""
        for container in self.server.containers():
            if container.state == "busy" and (container.gang is None or container.gang.members[rank] is container):
                return container
        return None

    # -- afterwards --------------------------------------------------------------------------------------------------

    def _watch_end(self, case: Case, caller: Caller, mark: str, strike: Strike) -> list[str]:
        """Wait until all is over; gives what is left all the same."""
        left = [strike.failure] if strike.failure else []
        seconds = LONG * self._patience
        if caller.end(seconds) is None:
            left.append(f"the caller has not ended within {seconds:g} s")
            caller.close()
        # The client may be gone before its run is: the run's own end is waited for.
        for pid, command in wait_for_none(mark, seconds).items():
            left.append(f"process {pid} is left: {command[:200]}")
        if case.fault == "cancel a tree":
            took = time.monotonic() - strike.at
            if took > SOON * self._patience:
                left.append(f"it took {took:.1f} s until nothing was left")
        return left

    def _look(self, case: Case, caller: Caller, folder: Path, work: Path, strike: Strike, leftovers: list[str]) -> Seen:
        run_id, left = caller.run_id, list(leftovers)
        follow = case.number % 2 == 0
        observed = self._ask(case, run_id, "wait", follow=follow) if run_id else {"found": False}
        if case.backend == "modal":
            with contextlib.suppress(Exception):  # not there: the run was ended before
                folder = self.server.volume(_volume_of(work))
            left += self._left_on_modal()
        scratch = self._folder / "cache" / "skyrl_modal" / "scratch"
        # A caller that is killed in the middle of a start may leave one, which the next start takes away.
        if not (case.is_early and case.fault.startswith("client SIG")):
            left += [f"scratch folder {path.name} is left" for path in _entries(scratch)]
        left += [f"temporary file {path.name} is left" for path in _entries(self._tmp)]
        records = folder / ".skyrl_modal" / "runs" / run_id
        known = {"job.json", "state.json", "output.log", "result.json", "ray"}
        left += [f"file {path.name} is left with the records" for path in _entries(records) if path.name not in known]
        if (folder / "port").exists():
            port = int((folder / "port").read_text())
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    left.append(f"port {port} is open")
        log, told = records / "output.log", work / "told.json"
        return Seen(
            caller=caller.process.returncode,
            shown=caller.shown,
            said=caller.said,
            told=json.loads(told.read_text()) if told.exists() else None,
            observed=observed if observed["found"] else None,
            log=log.read_bytes() if log.exists() else None,
            struck=strike.struck,
            leftovers=tuple(left),
        )

    def _left_on_modal(self) -> list[str]:
        """Apps and containers that have not ended."""
        plane, stopped = self.server.plane, api_pb2.APP_STATE_STOPPED
        seconds = LONG * self._patience
        try:
            self.server.wait_until(lambda: all(a.state == stopped for a in plane.apps.apps.values()), seconds)
            self.server.wait_for_no_container(seconds)
        except TimeoutError:
            apps = [app.id for app in self.server.apps if app.state != stopped]
            return [f"apps {apps} and containers {[c.id for c in self.server.containers()]} go on"]
        return []

    def _remove(self, mark: str) -> None:
        """After a finding: end what was left, which is ours by its mark, so that it does not meet the next run."""
        for pid in marked_processes(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in _entries(self._tmp):
            shutil.rmtree(path, ignore_errors=True)


def _fill(folder: Path) -> None:
    """Take all the room that a file system has."""
    with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass


def _program(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _volume_of(work: Path) -> str:
    name: str = json.loads((work / "facts.json").read_text())["volume"]
    return name
