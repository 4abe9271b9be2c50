"""Injection of a fault into a run, at the moment that its case defines."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from tests.support.loopback import LoopbackModal
from tests.support.loopback.records import Container
from tests.support.processes import marked_processes, supervisors
from tests.support.run_processes import run_processes

from .cases import KILLS, TIMEOUT_FAULTS, Case
from .client_processes import CallerProcess

if TYPE_CHECKING:
    from .fault_environment import FaultEnvironment

#: Seconds that a step of a run may take, times the campaign's factor.
STEP_TIMEOUT = 90.0
#: Number of failing commits that stands for all of them.
ALL_COMMITS = 1 << 30


@attrs.define
class Injection:
    """How often a fault was injected, when, and why it could not be."""

    count: int = 0
    time: float = 0.0
    failure: str = ""


def inject(
    environment: FaultEnvironment, case: Case, caller: CallerProcess, volume: str, mark: str, injection: Injection
) -> None:
    """Wait for the moment of a case, and inject its fault.

    Args:
        environment: Environment of the run.
        case: The case.
        caller: The run's caller.
        volume: Name of the run's volume.
        mark: Mark of the run's processes.
        injection: Record of the injection; updated.
    """
    if case.fault in ("none", "timeout"):
        return
    if case.is_early:
        caller.wait_for_message("| run ", environment.timeout)
    else:
        caller.wait_for_lines(case.after_lines, environment.timeout)
    time.sleep(case.delay)  # the random part of the moment
    injection.count, injection.time = int(caller.process.poll() is None), time.monotonic()
    if case.has_slow_reader:
        _stop_reading(environment, case, caller, mark, injection)
    elif case.fault in KILLS:
        injection.count = _kill(case, mark)
    elif case.fault.startswith(("client ", "Ctrl-C")):
        _signal_caller(case, caller)
    elif case.fault.startswith("cancel"):
        answer = environment.request(case, caller.run_id, "cancel", start_timeout=environment.timeout)
        if "error" in answer:
            injection.failure = f"cancel failed: {answer['error']}"
    elif case.backend == "local":
        _inject_locally(environment, case, caller, volume, mark)
    else:
        _inject_on_modal(environment.server, case, caller, volume, injection, environment.timeout)


def _signal_caller(case: Case, caller: CallerProcess) -> None:
    match case.fault:
        case "client SIGKILL":
            caller.signal(signal.SIGKILL)
        case "client SIGTERM":
            caller.signal(signal.SIGTERM)
        case "client SIGSTOP":
            caller.signal(signal.SIGSTOP)
            time.sleep(min(case.interval, 2.5))
            caller.signal(signal.SIGCONT)
        case "Ctrl-C":
            caller.signal(signal.SIGINT)
        case "Ctrl-C twice":
            caller.signal(signal.SIGINT)
            time.sleep(case.interval / 3)
            caller.signal(signal.SIGINT)


def _stop_reading(
    environment: FaultEnvironment, case: Case, caller: CallerProcess, mark: str, injection: Injection
) -> None:
    """Do not read the caller's output, end the run, and wait for its end before reading the output again."""
    caller.stop_reading()
    seconds = environment.end_timeout
    if case.fault in TIMEOUT_FAULTS:
        seconds += float(str(case.fields["timeout"]))
    else:
        time.sleep(case.interval)  # until then the output fills the buffers
        answer = environment.request(case, caller.run_id, "cancel", start_timeout=environment.timeout)
        if "error" in answer:
            injection.failure = f"cancel failed: {answer['error']}"
        injection.time = time.monotonic()  # the request starts a process, which takes seconds on a busy machine

    def is_running() -> bool:
        if case.backend == "local":
            return bool(supervisors(mark)[0])
        return _busy_container(environment.server, 0) is not None

    while is_running():
        if time.monotonic() > injection.time + seconds:
            injection.failure = f"the run has not ended {seconds:.1f} s after its fault, since its output was not read"
            break
        time.sleep(0.05)
    caller.continue_reading()


def _kill(case: Case, mark: str) -> int:
    """Kill the process of a case. Return how many were killed."""
    target, rank, _ = KILLS[case.fault]
    deadline = time.monotonic() + 10
    while (pid := run_processes(mark).get((target, rank))) is None:
        # Some of Ray's processes start after Ray is ready.
        if time.monotonic() > deadline or not marked_processes(mark):
            return 0
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return 1


def _inject_locally(environment: FaultEnvironment, case: Case, caller: CallerProcess, volume: str, mark: str) -> None:
    match case.fault:
        case "supervisor SIGKILL":
            os.kill(environment.index_entry(caller.run_id)["handle"]["pid"], signal.SIGKILL)
        case "rank 1 SIGKILL":
            [rank] = supervisors(mark)[1]
            os.kill(rank, signal.SIGKILL)
        case "raylet SIGKILL":
            [raylet] = [pid for pid in marked_processes(mark) if _program_name(pid) == "raylet"]
            os.kill(raylet, signal.SIGKILL)
        case "full volume":
            _fill(environment.local_volume(volume))


def _inject_on_modal(
    server: LoopbackModal, case: Case, caller: CallerProcess, volume: str, injection: Injection, timeout: float
) -> None:
    match case.fault:
        case "supervisor SIGKILL":
            server.kill(_busy_container(server, 0))
        case "rank 1 SIGKILL":
            server.kill(_busy_container(server, 1))
        case "full volume":
            server.fail_commits(volume, times=ALL_COMMITS)
        case "dropped stream":
            injection.count = 0
            for number in range(case.repetitions):
                caller.wait_for_lines(case.after_lines + 3 * number, timeout)
                injection.count += server.faults.drop_log_streams()
        case "UNAVAILABLE":
            server.faults.unavailable(case.interval)
        case "offline":
            with server.offline():
                time.sleep(case.interval)
        case "preemption":
            injection.count = 0
            for number in range(case.repetitions):
                # Preempt the restarted command again as soon as it has printed something.
                if number and not caller.wait_for_restart(number, timeout):
                    break
                busy = _busy_container(server, 0)
                if busy is None or busy.retiring:  # the command has ended in the meantime
                    break
                server.preempt(busy)
                injection.count += 1


def _busy_container(server: LoopbackModal, rank: int) -> Container | None:
    """Return the container of a rank, or None if it has exited or is not busy yet."""
    for container in server.containers():
        if container.state == "busy" and (container.gang is None or container.gang.members[rank] is container):
            return container
    return None


def _fill(folder: Path) -> None:
    """Fill a file system."""
    with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass


def _program_name(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return ""
