"""Injected faults of the loopback, with the real client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import modal
import pytest

from . import LoopbackModal

CLIENT = """
import importlib.util, sys, modal
spec = importlib.util.spec_from_file_location("loopback_jobs", sys.argv[1])
jobs = importlib.util.module_from_spec(spec)
sys.modules["loopback_jobs"] = jobs
spec.loader.exec_module(jobs)
app = modal.App("owned")
wait = app.function(image=modal.Image.from_registry("ubuntu:22.04"))(jobs.wait)
with app.run(detach=sys.argv[2].startswith("detached")):
    wait.spawn().get() if sys.argv[2] == "detached spawn" else wait.remote()
"""


@pytest.fixture
def volume() -> dict[str, Any]:
    """Return the function options that mount a volume at /data."""
    return {"volumes": {"/data": modal.Volume.from_name("v", create_if_missing=True)}}


# -- the control plane -------------------------------------------------------------------------------------------------


def test_next_calls_are_refused(loopback: LoopbackModal, running: Any) -> None:
    """The client repeats RPCs that are refused, and the call succeeds."""
    with running("double") as double:
        loopback.faults.unavailable(calls=2, names="FunctionMap")
        assert double.remote(1) == 2
    assert loopback.faults.refused == 2
    assert len(loopback.calls("FunctionMap")) == 3
    assert len(loopback.function_calls) == 1


def test_lost_reply_does_not_start_a_call_twice(loopback: LoopbackModal, running: Any) -> None:
    """An RPC that is repeated after its reply was lost is executed once."""
    with running("double") as double:
        loopback.faults.unavailable(calls=1, names="FunctionMap", reply_lost=True)
        assert double.remote(1) == 2
    assert len(loopback.calls("FunctionMap")) == 2
    assert len(loopback.function_calls) == 1
    assert loopback.log_text().count("doubling") == 1


def test_call_continues_during_an_outage(loopback: LoopbackModal, running: Any) -> None:
    """The client fails during an outage, and finds the finished call with its complete log afterwards."""
    loopback.plane.client_timeout = 60.0  # the app stops only after some minutes without heartbeats
    with running("ticks") as ticks:
        call = ticks.spawn(25, 0.1)
        loopback.wait_for_text("tick 0", call.object_id)
        begin = time.monotonic()
        loopback.faults.unavailable(2.0)
        with pytest.raises(modal.exception.ServiceError):
            call.get()
        assert time.monotonic() - begin < 2.0
        loopback.wait_until(lambda: not loopback.faults.outage)
        assert call.get() is None
        seen = "".join(entry.message for entry in call.logs.stream())
    assert seen == "".join(f"tick {number}\n" for number in range(25))


def test_call_continues_while_clients_are_offline(loopback: LoopbackModal, running: Any) -> None:
    """A client without a connection fails, and finds the finished call once it is connected again."""
    with running("ticks") as ticks:
        call = ticks.spawn(20, 0.1)
        loopback.wait_for_text("tick 0", call.object_id)
        with loopback.offline():
            with pytest.raises(modal.exception.ConnectionError):
                call.get()
            loopback.wait_for_text("tick 19", call.object_id)
        assert call.get() is None
        assert "".join(entry.message for entry in call.logs.fetch()).endswith("tick 19\n")


def test_outage_for_containers_only(loopback: LoopbackModal, running: Any) -> None:
    """A container repeats the RPC that returns its output."""
    with running("double") as double:
        double.remote(1)
        loopback.faults.unavailable(calls=2, names="FunctionPutOutputs", side="container")
        assert double.remote(2) == 4
        loopback.faults.unavailable(calls=1, names="FunctionPutOutputs", side="container", reply_lost=True)
        assert double.remote(3) == 6


def test_revoked_token_is_refused(loopback: LoopbackModal, running: Any) -> None:
    """A client whose token was revoked gets AuthError."""
    loopback.faults.revoke_token()
    with pytest.raises(modal.exception.AuthError, match="Token validation failed"), running("double"):
        pass


def test_unknown_gpu_is_refused(loopback: LoopbackModal, running: Any) -> None:
    """An unknown GPU name is refused; a list of known ones keeps its order."""
    with pytest.raises(modal.exception.InvalidError, match="A1000"), running("double", gpu="A1000:2"):
        pass
    with running("double", gpu=["H100:8", "A100-80GB:4"]):
        assert loopback.functions[-1].gpus == [("H100", 8), ("A100-80GB", 4)]


def test_missing_secret_or_key_is_refused(loopback: LoopbackModal, running: Any) -> None:
    """A named secret that does not exist, or lacks a required key, is refused."""
    loopback.secret("there", {"A": "1"})
    missing = pytest.raises(modal.exception.NotFoundError, match="'absent' not found in environment 'main'")
    with missing, running("double", secrets=[modal.Secret.from_name("absent")]):
        pass
    incomplete = modal.Secret.from_name("there", required_keys=["B"])
    with pytest.raises(modal.exception.NotFoundError, match="missing key"), running("double", secrets=[incomplete]):
        pass


def test_failed_image_build(loopback: LoopbackModal, running: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed build shows its log; the image can be built afterwards."""
    image = modal.Image.from_registry("ubuntu:22.04").run_commands("make it")
    loopback.faults.fail_build("make it", log="gcc: fatal error\nmake: *** [it] Error 1\n")
    failure = pytest.raises(modal.exception.ImageBuildError, match=r"Image build for im-.* failed")
    with modal.enable_output(), failure, running("double", image=image):
        pass
    assert "gcc: fatal error" in capsys.readouterr().out
    loopback.faults.clear()
    with running("double", image=image) as double:
        assert double.remote(1) == 2


# -- logs --------------------------------------------------------------------------------------------------------------


def test_dropped_log_stream_resumes_without_gap(loopback: LoopbackModal, running: Any) -> None:
    """The client resumes a dropped log stream without a gap or repeated entries."""
    seen = []
    with running("ticks") as ticks:
        call = ticks.spawn(20, 0.05)
        for entry in call.logs.stream():
            seen.append(entry.message)
            if len(seen) in (3, 7, 11):
                loopback.faults.drop_log_streams()
    assert "".join(seen) == "".join(f"tick {number}\n" for number in range(20))
    assert len(loopback.calls("AppGetLogs")) >= 4


def test_silenced_log_is_delivered_later(loopback: LoopbackModal, running: Any) -> None:
    """A silenced log stream delivers its entries when the silence is over."""
    with running("print_text") as print_text:
        call = print_text.spawn("text\n")
        call.get()
        loopback.faults.silence_logs(5.0)
        assert list(call.logs.stream()) == []  # the client stops waiting soon after the end of the call
        loopback.wait_until(lambda: loopback.faults.logs_silent_until < time.monotonic())
        assert [entry.message for entry in call.logs.stream()] == ["text\n"]


def test_delayed_log_entry_arrives_late(loopback: LoopbackModal, running: Any) -> None:
    """A log entry is not delivered before its delay is over."""
    loopback.faults.delay_logs(0.7)
    with running("wait") as wait:
        call = wait.spawn("late")
        assert next(call.logs.stream()).message.startswith("late")
        entry = loopback.log(call.object_id)[0]
        assert time.time() - entry.time_ns / 1e9 >= 0.7
        call.cancel()


@pytest.mark.parametrize("inside", [False, True])
def test_log_entries_are_cut_at_a_size(loopback: LoopbackModal, running: Any, inside: bool) -> None:
    """Entries are cut between or inside characters; only the latter replaces characters."""
    loopback.cut_logs(4, inside_characters=inside)
    text = "äö€ ok\n" * 5
    with running("print_text") as print_text:
        call = print_text.spawn(text)
        call.get()
        messages = [entry.message for entry in call.logs.fetch()]
    assert len(messages) >= len(text.encode()) // 4
    assert ("".join(messages) == text) is not inside
    assert ("\N{REPLACEMENT CHARACTER}" in "".join(messages)) is inside


def test_character_in_two_writes_is_complete(loopback: LoopbackModal, running: Any) -> None:
    """A character that is written in two parts is logged as one character."""
    euro = "€".encode()
    with running("print_bytes") as print_bytes:
        call = print_bytes.spawn([euro[:1], euro[1:], b"\xff\n"])
        call.get()
    assert loopback.log_text(call.object_id) == "€\N{REPLACEMENT CHARACTER}\n"


# -- containers --------------------------------------------------------------------------------------------------------


def test_dead_container_is_replaced(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """The input of a container that died runs again in a new container."""
    with running("once_then_return", **volume) as once:
        call = once.spawn("/data/attempts", "v")
        loopback.wait_for_text("attempt 1")
        loopback.kill()
        tasks = call.get()
    assert len(tasks) == len(set(tasks)) == 2
    assert [c.returncode for c in loopback.containers(running=False)][:1] == [137]
    assert loopback.log_text(call.object_id) == "attempt 1\nattempt 2\n"


def test_input_fails_after_too_many_crashes(loopback: LoopbackModal, running: Any) -> None:
    """An input fails after the third of its containers has died."""
    with running("die") as die, pytest.raises(modal.exception.RemoteError, match="exit code 3"):
        die.remote(3)
    assert len(loopback.containers(running=False)) == 3


def test_import_error_fails_the_call(loopback: LoopbackModal, tmp_path: Path) -> None:
    """An exception during the import in the container fails the call."""
    script = tmp_path / "broken.py"
    script.write_text(
        "import modal, os\nif not modal.is_local():\n    raise ImportError('no such thing')\n"
        "app = modal.App('broken')\n@app.function()\ndef f(): pass\n"
        "@app.local_entrypoint()\ndef main(): f.remote()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "modal", "run", str(script)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **loopback.env()},
    )
    assert done.returncode == 1
    assert "no such thing" in done.stderr


def test_preempted_input_runs_again(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """Preemption runs the same input again, without counting as a retry."""
    with running("once_then_return", **volume) as once:
        call = once.spawn("/data/attempts", "v")
        loopback.wait_for_text("attempt 1")
        loopback.preempt()
        assert len(call.get()) == 2
    assert loopback.function_calls[0].inputs[0].retry_count == 0
    assert any("worker preemption" in entry.data for entry in loopback.log())


def test_preempted_container_is_killed_after_grace(loopback: LoopbackModal, running: Any) -> None:
    """A container that ignores its preemption is killed and replaced."""
    with running("stubborn") as stubborn:
        call = stubborn.spawn()
        loopback.wait_for_text("waiting")
        first = loopback.wait_for_container("busy")
        loopback.preempt(first, grace=0.3)
        loopback.wait_until(lambda: first.state == "done")
        second = loopback.wait_for_container("busy")
        assert second.id != first.id
        assert loopback.function_calls[0].inputs[0].crashes == 0
        call.cancel(terminate_containers=True)
        loopback.wait_until(lambda: second.state == "done")


def test_slow_start_delays_the_container(loopback: LoopbackModal, running: Any) -> None:
    """A container starts after the requested delay."""
    loopback.faults.slow_start(1.0)
    with running("double") as double:
        double.remote(1)
    container = loopback.containers(running=False)[0]
    assert container.ready_at - container.created_at >= 1.0


def test_timeout_is_retried(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """An attempt that exceeded its timeout is retried."""
    retries = modal.Retries(max_retries=1, initial_delay=0.0)
    with running("once_then_return", timeout=2, retries=retries, **volume) as once:
        assert len(once.spawn("/data/attempts", "v").get()) == 2


def test_commit_failure_is_raised(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """A failing commit raises DataLossError in the container and in the caller."""
    with running("write", **volume) as write:
        write.remote("/data/a", "1", commit="v")
        loopback.fail_commits("v")
        with pytest.raises(modal.exception.DataLossError, match="failed to publish commit"):
            write.remote("/data/a", "2", commit="v")


def test_background_commits_publish_files(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """With background commits, a file is published without a commit of the function."""
    loopback.plane.background_commits = 0.1
    with running("write", **volume) as write:
        write.remote("/data/a", "1")
        folder = loopback.volume("v")
        loopback.wait_until((folder / "a").exists)


# -- ownership ---------------------------------------------------------------------------------------------------------


def start_client(server: LoopbackModal, mode: str) -> subprocess.Popen[bytes]:
    """Start a process that runs an app with one waiting call."""
    jobs = Path(__file__).parent / "loopback_jobs.py"
    return subprocess.Popen([sys.executable, "-c", CLIENT, str(jobs), mode], env={**os.environ, **server.env()})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_attached_app_stops_with_its_client(loopback: LoopbackModal, number: int) -> None:
    """The app and its containers stop after the client was killed or interrupted."""
    loopback.plane.client_timeout = 2.0
    process = start_client(loopback, "attached")
    loopback.wait_for_text("waiting")
    process.send_signal(number)
    process.wait(30)
    loopback.wait_for_no_container()
    assert "ended by KeyboardInterrupt" in loopback.log_text()
    loopback.wait_until(
        lambda: bool(loopback.plane.apps.apps) and all(a.stopped_at for a in loopback.plane.apps.apps.values())
    )


def test_detached_app_continues_without_its_client(loopback: LoopbackModal) -> None:
    """A spawned call of a detached app continues without its client; the app stops when the call has ended."""
    loopback.plane.client_timeout, loopback.plane.scaledown = 1.0, 0.5
    process = start_client(loopback, "detached spawn")
    loopback.wait_for_text("waiting")
    process.kill()
    process.wait(30)
    app = loopback.apps[0]
    loopback.wait_until(lambda: not app.connected)
    call = modal.FunctionCall.from_id(loopback.function_calls[0].id)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    call.cancel()
    loopback.wait_until(lambda: bool(app.stopped_at))
    with pytest.raises(modal.exception.RemoteError):
        call.get()
    assert "".join(entry.message for entry in call.logs.stream()).startswith("waiting\n")


def test_leaving_app_run_stops_running_calls(loopback: LoopbackModal, running: Any) -> None:
    """Leaving the block of app.run stops the containers and terminates the calls."""
    with running("wait") as wait:
        call = wait.spawn()
        loopback.wait_for_text("waiting")
    loopback.wait_for_no_container()
    with pytest.raises(modal.exception.RemoteError):
        call.get()


def test_parallel_calls_have_their_own_containers(loopback: LoopbackModal, running: Any) -> None:
    """Two calls at the same time run in two containers, with separate logs."""
    with running("wait") as wait:
        calls = [wait.spawn(f"number {number}", 600.0) for number in range(2)]
        for number in range(2):
            loopback.wait_for_text(f"number {number}")
        assert len(loopback.containers()) == 2
        done = threading.Event()
        for call in calls:
            call.cancel()
        done.set()
    assert loopback.log_text(calls[1].object_id).startswith("number 1\n")
