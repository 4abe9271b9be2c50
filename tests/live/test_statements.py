"""What is recorded about Modal's servers, measured on Modal (`pytest -m live tests/live`) and on the loopback.

All tests together take less than 20 minutes on Modal, most of which is waiting for clients that have disconnected, and
cost less than one US dollar: one test uses an L4 for a minute, the others a fraction of a CPU. The page of assumptions
(docs/modal-assumptions.md) names the test of each statement. What cannot be caused on purpose (preemption by Modal,
failing commits, the spend limit) and what is expensive (clusters) is not tested here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal
import pytest

from skyrl_modal.backends.modal.rates import normalized_rates
from tests.live.conftest import JOBS
from tests.support.loopback.test_as_recorded import SCRIPT
from tests.support.loopback.test_faults import CLIENT

CANCELLED = "Function call was cancelled by user or a failure."
Record = Callable[[str, object], None]
pytestmark = pytest.mark.timeout(900)


def wait_for_text(call: Any, text: str) -> None:
    """Wait until the log of a call contains a text."""
    seen = ""
    for entry in call.logs.stream():
        seen += entry.message
        if text in seen:
            return
    pytest.fail(f"{text!r} was not printed: {seen!r}")


def error_of(call: Any, timeout: float | None = None) -> Exception | None:
    """Return the error of a call; None if it returned a value."""
    try:
        call.get(timeout=timeout)
    except Exception as error:
        return error
    return None


def test_cancelled_call_raises_a_text(running: Any, record: Record) -> None:
    """A cancelled call raises RemoteError with Modal's text."""
    with running("wait") as wait:
        call = wait.spawn()
        wait_for_text(call, "waiting")
        call.cancel()
        error = error_of(call)
        record("error of a cancelled call", repr(error))
        assert type(error) is modal.exception.RemoteError
        assert str(error) == CANCELLED


def test_log_is_replayed_without_system_lines(running: Any, record: Record) -> None:
    """A call's log can be read twice from its beginning, and contains only what the container printed."""
    with running("print_text") as print_text:
        call = print_text.spawn("one\n", "two\n")
        call.get()
        texts = ["".join(sorted(entry.message for entry in call.logs.stream())) for _ in range(2)]
        record("log of a call, read twice", texts)
        assert texts == ["one\ntwo\n"] * 2


@pytest.mark.parametrize("code", [0, -1])
def test_modal_run_shows_how_it_ended(account: str, tmp_path: Path, record: Record, code: int) -> None:
    """`modal run` shows an exception for SystemExit(0) of its entrypoint, and completion if it returns."""
    image = 'modal.Image.from_registry("ubuntu:22.04")'
    (tmp_path / "ends.py").write_text(SCRIPT.replace(image, "modal.Image.debian_slim()"))
    command = [sys.executable, "-m", "modal", "run", str(tmp_path / "ends.py"), "--code", str(code)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    lines = [line for line in done.stdout.splitlines() if "Stopping app" in line]
    record(f"last lines of `modal run` with code {code}", lines)
    assert done.returncode == 0
    assert ("SystemExit(0)" in "".join(lines)) is (code == 0)


def test_facts_of_containers(running: Any, record: Record) -> None:
    """HOME, the user, the working directory and the runtime's folders are as recorded."""
    with running("environment") as environment:
        found = environment.remote()
        for name in ("HOME", "PYTHONPATH", "PATH"):
            record(f"variable {name}", found.get(name))
        assert found["HOME"] in ("/root", "/home/ray")
    with running("runtime_modules") as runtime_modules:
        found = runtime_modules.remote("grpclib")
        record("sys.path of a function", found["path"])
        record("a child process can import the runtime's grpclib", found["child"])
    with running("pidfd_error") as pidfd_error:
        number = pidfd_error.remote()
        record("error number of pidfd_open", number)
        assert number in (0, 38)
    with running("run_program") as run_program:
        record("kernel of containers", run_program.remote("uname", "-a")[1].strip())


def test_mounted_files_can_be_changed_or_not(running: Any, record: Record, tmp_path: Path) -> None:
    """Mounted files may be writable or read-only; the error number is reported."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "run.sh").write_text("true\n")
    python = f"3.{sys.version_info.minor}"
    image = modal.Image.debian_slim(python_version=python).add_local_dir(tmp_path / "code", "/root/SkyRL")
    with running("write_error", image=image) as write_error:
        numbers = write_error.remote("/root/SkyRL/run.sh"), write_error.remote("/root/SkyRL/new")
        record("error numbers of changing a mounted file, and of creating one beside it", numbers)
        assert set(numbers) <= {0, 13, 30}


def test_commits_of_volumes(running: Any, record: Record, volume: Any) -> None:
    """Commits succeed after at most some repetitions; one with an open file may raise RuntimeError."""
    name, mounted = volume
    with running("write", **mounted) as write:
        record("resolved path of a file on a volume", write.remote("/data/a", "text"))
    with running("commit_until_it_works", **mounted) as commit:
        begin = time.monotonic()
        errors = commit.remote("/data/b", name)
        record("errors until a commit succeeded, and seconds", (errors, round(time.monotonic() - begin, 1)))
    with running("commit_with_open_file", **mounted) as commit:
        error = commit.remote("/data/c", name)
        record("error of a commit with an open file", error)
        assert error == "" or "open files" in error
    with running("seen_during_commit", **mounted) as seen:
        record("whether a file seemed to exist during a commit", seen.remote("/data", name))


def test_stopped_container_is_replaced(running: Any, record: Record, volume: Any) -> None:
    """A container that `modal container stop` stops is replaced, and the new one runs the same input."""
    name, mounted = volume
    with running("once_then_return", **mounted) as once:
        call = once.spawn("/data/attempts", name)
        wait_for_text(call, "attempt 1")
        first = modal.Volume.from_name(name).read_file("attempts")
        task = b"".join(first).decode().strip()
        subprocess.run([sys.executable, "-m", "modal", "container", "stop", "--yes", task], check=False)
        begin = time.monotonic()
        tasks = call.get(timeout=300)
        record("seconds from the stop of a container to the end of its replacement", round(time.monotonic() - begin, 1))
        assert len(set(tasks)) == 2


@pytest.mark.parametrize("mode", ["attached", "detached", "detached spawn"])
def test_call_of_a_client_that_disappears(account: str, record: Record, mode: str) -> None:
    """The call of an attached app is cancelled some minutes after its client was killed; a spawned one continues."""
    source = CLIENT.replace('from_registry("ubuntu:22.04")', "debian_slim()").replace(
        "wait.spawn().get()", "(lambda call: (print(call.object_id, flush=True), call.get()))(wait.spawn())"
    )
    source = source.replace(")(jobs.wait)", ", scaledown_window=5)(jobs.wait)")  # a container of a cancelled call ends
    source = source.replace("else wait.remote()", "else (print(app.app_id, flush=True), wait.remote())")
    process = subprocess.Popen([sys.executable, "-c", source, str(JOBS), mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    app_or_call = next(line.strip() for line in process.stdout if line.startswith(("ap-", "fc-")))
    while mode != "detached spawn" and app_or_call not in listed_containers():
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    begin, limit = time.monotonic(), 10 if account == "loopback" else 300
    if mode == "detached spawn":
        error = error_of(modal.FunctionCall.from_id(app_or_call), timeout=limit)
        record("a spawned call of a detached app after its client was killed", repr(error))
        assert isinstance(error, TimeoutError)
        modal.FunctionCall.from_id(app_or_call).cancel()
        return
    while (is_running := app_or_call in listed_containers()) and time.monotonic() - begin < limit:
        time.sleep(0.5 if account == "loopback" else 5)
    record(
        f"{mode} .remote(): still running {round(time.monotonic() - begin)} s after its client was killed", is_running
    )
    subprocess.run([sys.executable, "-m", "modal", "app", "stop", "--yes", app_or_call], check=False)
    assert mode == "detached" or not is_running


def listed_containers() -> str:
    """Return the list of the account's running containers as JSON."""
    command = [sys.executable, "-m", "modal", "container", "list", "--json"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_unknown_gpu(running: Any, record: Record) -> None:
    """A GPU that Modal does not have is refused before anything is started."""
    with pytest.raises(modal.exception.Error) as raised, running("double", gpu="NO-SUCH-GPU"):
        pass
    record("refusal of an unknown GPU", repr(raised.value)[:300])


def test_names_of_rates(account: str, record: Record) -> None:
    """The rates of the workspace have the names that are known. The values are not printed: they may be negotiated."""
    names = sorted(modal.Workspace.from_context().billing.rates())
    record("names of the workspace's rates", names)
    known = normalized_rates(dict.fromkeys(names, 1))
    record("rates that are recognized", sorted(known))
    assert {"CPU", "memory", "H100"} <= set(known)


def test_driver_of_an_l4(running: Any, record: Record) -> None:
    """nvidia-smi lists the GPU; now and then its driver does not initialize."""
    with running("run_program", gpu="L4") as run_program:
        begin = time.monotonic()
        code, output = run_program.remote("nvidia-smi", "-L")
        record("exit code and output of nvidia-smi -L", (code, output[:40]))
        cuda = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
        code, output = run_program.remote("python3", "-c", cuda)
        record("exit code of a process that calls cuInit, and the result", (code, output[-60:]))
        record("seconds until an L4 has answered", round(time.monotonic() - begin))
