"""The loopback behaves as users of Modal have recorded it: one test for each statement.

Each statement, with its source, is in docs/modal-assumptions.md.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import modal
import pytest

from . import LoopbackModal
from .test_clusters import clustered
from .test_faults import start_client, volume

__all__ = ["clustered", "volume"]

CANCELLED = "Function call was cancelled by user or a failure."
PREEMPTED = "Runner interrupted due to worker preemption. Your Function will be restarted with the same input."
SCRIPT = """
import modal, sys
app = modal.App("ends")
@app.function(image=modal.Image.from_registry("ubuntu:22.04"))
def f():
    print("in the container")
@app.local_entrypoint()
def main(code: int):
    f.remote()
    if code >= 0:
        sys.exit(code)
"""


def app_lines(server: LoopbackModal) -> list[str]:
    """Return the lines of the server itself in the logs of all apps."""
    return [entry.data.rstrip("\n") for entry in server.log() if entry.descriptor not in (1, 2)]


def wait_for_line(server: LoopbackModal, text: str) -> None:
    """Wait until a line of the server itself contains a text."""
    logs = server.plane.logs.logs
    server.wait_until(lambda: any(text in e.data for log in logs.values() for e in log.entries), what=text)


# -- a call and its end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["caller", "elsewhere", "before its start", "app"])
def test_cancelled_call_raises_modals_text(loopback: LoopbackModal, running: Any, how: str) -> None:
    """A call that was cancelled, by anybody and at any time, raises RemoteError with Modal's text."""
    if how == "before its start":
        loopback.faults.slow_start(3.0)
    with running("wait") as wait:
        call = wait.spawn()
        if how != "before its start":
            loopback.wait_for_text("waiting")
        if how == "elsewhere":
            loopback.cancel(call.object_id)
        elif how != "app":
            call.cancel()
    with pytest.raises(modal.exception.RemoteError) as raised:
        call.get()
    assert type(raised.value) is modal.exception.RemoteError
    assert str(raised.value) == CANCELLED


def test_container_logs_its_cancellation(loopback: LoopbackModal, running: Any) -> None:
    """The container's log has a line when the cancellation arrives, and one when the input has ended."""
    with running("wait") as wait:
        call = wait.spawn()
        loopback.wait_for_text("waiting")
        call.cancel()
        loopback.wait_for_text("Successfully canceled input")
    log = loopback.log_text()
    assert log.index("Received a cancellation signal while processing input") < log.index("Successfully canceled input")


def test_system_lines_are_in_the_apps_log_only(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """Lines about containers have the id of the container, and none of a call: the call's log lacks them."""
    with running("once_then_return", **volume) as once:
        call = once.spawn("/data/attempts", "v")
        loopback.wait_for_text("attempt 1")
        loopback.preempt()
        call.get()
        assert "".join(entry.message for entry in call.logs.fetch()) == "attempt 1\nattempt 2\n"
        lines = [entry for entry in loopback.log() if entry.descriptor not in (1, 2)]
        first = loopback.containers(running=False)[0].id
        about_first = [entry.data for entry in lines if entry.container_id == first]
        assert [any(word in line for line in about_first) for word in ("image", "preemption", "ended")] == [True] * 3
        assert f"{PREEMPTED}\n" in about_first
        assert not [entry for entry in lines if entry.call_id or entry.input_id]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "line"),
    [
        (0, "Stopping app - uncaught exception raised locally: SystemExit(0)."),
        (3, "Stopping app - uncaught exception raised locally: SystemExit(3)."),
        (-1, "Stopping app - local entrypoint completed."),
    ],
)
def test_modal_run_shows_how_it_ended(loopback: LoopbackModal, tmp_path: Path, code: int, line: str) -> None:
    """`modal run` shows an exception for every SystemExit of its entrypoint, and completion if it returns."""
    (tmp_path / "ends.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "modal", "run", str(tmp_path / "ends.py"), "--code", str(code)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **loopback.env(), "COLUMNS": "200"}
    )
    assert done.returncode == max(code, 0), done.stderr
    assert line in done.stdout
    assert ("App completed" in done.stdout) is (code < 0)
    assert line in app_lines(loopback)


def test_replayed_log_lacks_what_is_not_retained(loopback: LoopbackModal, running: Any) -> None:
    """A log is replayed from its beginning, as far as it is still stored."""
    loopback.mode = "short_retention"
    with running("ticks") as ticks:
        call = ticks.spawn(8, 0.5)
        call.get()
        text = "".join(entry.message for entry in call.logs.stream())
    assert text.endswith("tick 7\n")
    assert "tick 0\n" not in text


# -- a client that is disconnected -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_outage_of_minutes_stops_an_ephemeral_app(loopback: LoopbackModal, running: Any) -> None:
    """An app stops if its client cannot send heartbeats for minutes; its containers receive SIGINT."""
    loopback.plane.client_timeout = 2.0
    with running("wait") as wait:
        call = wait.spawn()
        loopback.wait_for_text("waiting")
        with loopback.offline():
            wait_for_line(loopback, "Stopping app - local client disconnected")
            loopback.wait_for_no_container()
        assert "ended by KeyboardInterrupt" in loopback.log_text(call.object_id)
        with pytest.raises(modal.exception.RemoteError, match=CANCELLED):
            call.get()


def test_outage_of_seconds_stops_no_app(loopback: LoopbackModal, running: Any) -> None:
    """An app continues if its client is disconnected for less time."""
    loopback.plane.client_timeout = 60.0
    with running("ticks") as ticks:
        call = ticks.spawn(15, 0.1)
        loopback.wait_for_text("tick 0")
        with loopback.offline():
            loopback.wait_for_text("tick 14")
        assert call.get() is None


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["recorded", "detached_continues"])
def test_detached_blocking_call_without_its_client(loopback: LoopbackModal, mode: str) -> None:
    """A blocking call of a detached app is cancelled when its client is disconnected, or continues: both occur."""
    loopback.mode, loopback.plane.client_timeout = mode, 1.0
    process = start_client(loopback, "detached")
    loopback.wait_for_text("waiting")
    process.kill()
    process.wait(30)
    [app], [entry] = loopback.apps, loopback.function_calls[0].inputs
    loopback.wait_until(lambda: not app.connected)
    if mode == "recorded":
        loopback.wait_until(lambda: entry.state == "done")
        assert entry.output is not None
        assert entry.output.result.exception == CANCELLED
    else:
        assert entry.state == "running"
        loopback.cancel(entry.call.id)
        loopback.wait_until(lambda: entry.state == "done")


# -- preemption --------------------------------------------------------------------------------------------------------


def test_replacement_can_overlap_the_old_container(loopback: LoopbackModal, running: Any) -> None:
    """The new container can run the input while the preempted one is still running."""
    loopback.mode = "overlap"
    with running("stubborn") as stubborn:
        call = stubborn.spawn()
        loopback.wait_for_text("waiting")
        first = loopback.wait_for_container("busy")
        loopback.preempt(first, grace=60)
        every = loopback.plane.scheduler.containers
        second = loopback.wait_until(lambda: next((c for c in every.values() if c is not first and c.running), None))
        assert second is not None
        assert first.state == "busy"
        assert second.created_at - next(e for e in loopback.log() if "preemption" in e.data).time_ns / 1e9 < 2.0
        loopback.kill(first)
        loopback.wait_until(lambda: first.state == "done")
        assert second.state == "busy"
        call.cancel(terminate_containers=True)


@pytest.mark.slow
def test_replacement_can_be_late(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """The new container can be created long after the old one has exited."""
    loopback.mode = "late_replacement"
    with running("once_then_return", **volume) as once:
        call = once.spawn("/data/attempts", "v")
        loopback.wait_for_text("attempt 1")
        loopback.preempt()
        assert len(call.get()) == 2
    first, second = loopback.containers(running=False)
    assert second.created_at >= first.finished_at
    assert second.created_at - next(e for e in loopback.log() if "preemption" in e.data).time_ns / 1e9 >= 3.1


def test_grace_is_the_platforms(loopback: LoopbackModal, running: Any) -> None:
    """A container that needs more time after SIGINT than the platform allows is killed."""
    loopback.mode = "short_grace"
    with running("saves_for", timeout=600) as saves:
        call = saves.spawn(120)
        loopback.wait_for_text("waiting")
        first = loopback.wait_for_container("busy")
        begin = time.monotonic()
        loopback.preempt(first)
        loopback.wait_until(lambda: first.state == "done")
        assert 2.5 < time.monotonic() - begin < 4.9
        assert loopback.log_text(call.object_id).startswith("waiting\nsaving\n")
        assert "saved" not in loopback.log_text(call.object_id)
        call.cancel(terminate_containers=True)


@pytest.mark.parametrize("how", ["preemption", "app", "client"])
def test_stops_look_the_same_in_the_container(loopback: LoopbackModal, how: str) -> None:
    """A preemption, a stop of the app and Ctrl-C of its client send SIGINT to the container."""
    process = start_client(loopback, "attached")
    loopback.wait_for_text("waiting")
    if how == "preemption":
        loopback.preempt()
    elif how == "app":
        loopback.plane._watchers[0].get_loop().call_soon_threadsafe(loopback.plane.apps.stop, loopback.apps[0])
    else:
        process.kill()
        loopback.plane.client_timeout = 1.0
    loopback.wait_for_text("ended by KeyboardInterrupt")
    process.kill()
    process.wait(30)


# -- volumes -----------------------------------------------------------------------------------------------------------


def test_commit_can_fail_once(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """A commit raises DataLossError and succeeds when it is repeated a second later."""
    loopback.mode = "commits_fail_once"
    with running("commit_until_it_works", **volume) as commit:
        errors = commit.remote("/data/a", "v")
    assert 1 <= len(errors) <= 4
    assert set(errors) == {"DataLossError: failed to publish commit"}
    assert (loopback.volume("v") / "a").read_text() == "text"


def test_commit_reloads_and_refuses_open_files(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """If the server requires a reload, a commit with an open file raises RuntimeError, but the file is committed."""
    loopback.mode = "reload_after_commit"
    with running("commit_with_open_file", **volume) as commit:
        assert "there are open files preventing the operation" in commit.remote("/data/a", "v")
        assert (loopback.volume("v") / "a").read_text() == "text"


def test_reloaded_volume_looks_empty(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """While a volume is reloaded, it looks empty."""
    loopback.mode = "reload_after_commit"
    with running("seen_during_commit", **volume) as names:
        assert names.remote("/data", "v") == [False, True]


def test_commits_of_several_containers_are_counted(loopback: LoopbackModal, running: Any, volume: Any) -> None:
    """The greatest number of commits at the same time is recorded: Modal advises five at most."""
    loopback.mode = "slow_commits"
    with running("commits_together", **volume) as commit:
        calls = [commit.spawn(f"/data/{number}", "v", number) for number in range(3)]
        for call in calls:
            call.get()
    assert 1 <= loopback.plane.volumes.find("v").most_commits_together <= 3


@pytest.mark.parametrize(("mode", "prefix"), [("recorded", "/__modal/volumes/vo-"), ("direct_volumes", "/data/a")])
def test_mount_path_of_a_volume(loopback: LoopbackModal, running: Any, volume: Any, mode: str, prefix: str) -> None:
    """The mount path of a volume is a symbolic link that `resolve` follows, or no link: both must be expected."""
    loopback.mode = mode
    with running("write", **volume) as write:
        assert write.remote("/data/a", "text", "v").startswith(prefix)
    assert (loopback.volume("v") / "a").read_text() == "text"


# -- containers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "number"), [("recorded", 0), ("no_pidfd", errno.ENOSYS)])
def test_pidfd_open_can_be_missing(loopback: LoopbackModal, running: Any, mode: str, number: int) -> None:
    """The system call pidfd_open may fail with ENOSYS."""
    loopback.mode = mode
    with running("pidfd_error") as pidfd_error:
        assert pidfd_error.remote() == number


@pytest.mark.parametrize(("mode", "number"), [("recorded", 0), ("read_only_mounts", errno.EROFS)])
def test_mounted_files_can_be_read_only(
    loopback: LoopbackModal, running: Any, tmp_path: Path, mode: str, number: int
) -> None:
    """Mounted files may be read-only, and no files can be created beside them."""
    loopback.mode = mode
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "run.sh").write_text("true\n")
    image = modal.Image.from_registry("ubuntu:22.04").add_local_dir(tmp_path / "code", "/root/SkyRL")
    with running("write_error", image=image) as write_error:
        assert write_error.remote("/root/SkyRL/run.sh") == number
        assert write_error.remote("/root/SkyRL/new") == number
        assert write_error.remote("/root/new") == 0


@pytest.mark.parametrize("mode", ["recorded", "sitecustomize"])
def test_runtime_is_on_the_path_of_child_processes(loopback: LoopbackModal, running: Any, mode: str) -> None:
    """The dependencies of Modal's runtime are on sys.path of the function and of its child processes."""
    loopback.mode = mode
    with running("runtime_modules") as runtime_modules:
        found = runtime_modules.remote("modal_runtime_dependency")
    assert (found["here"], found["child"]) == (True, True)
    assert {"/root", "/pkg"} <= set(found["path"])
    assert ("/__modal/deps" in found["path"]) is (mode == "sitecustomize")


@pytest.mark.parametrize(("mode", "home"), [("recorded", "/root"), ("home_ray", "/home/ray")])
def test_home_is_that_of_root_or_of_the_image(loopback: LoopbackModal, running: Any, mode: str, home: str) -> None:
    """HOME is /root or /home/ray, which contains programs in both cases; the user is root."""
    loopback.mode = mode
    with running("run_program") as run_program:
        command = 'echo "$HOME"; id -u; [ -d /home/ray/.local/bin ] && touch "$HOME/x" && echo exists'
        assert run_program.remote("sh", "-c", command) == (0, f"{home}\n0\nexists\n")


def test_gpu_driver_can_fail_in_the_first_container(loopback: LoopbackModal, running: Any) -> None:
    """nvidia-smi may fail in a container, and work in the next one."""
    loopback.mode = "driver_fails_once"
    with running("run_program", gpu="L4", single_use_containers=True) as run_program:
        first, second = run_program.remote("nvidia-smi", "-L"), run_program.remote("nvidia-smi", "-L")
    assert first[0] == 9
    assert "couldn't communicate with the NVIDIA driver" in first[1]
    assert second == (0, "GPU 0: loopback\n")


# -- the account -------------------------------------------------------------------------------------------------------


def test_spend_limit_at_the_start(loopback: LoopbackModal, running: Any) -> None:
    """A workspace over its spend limit refuses an app with ResourceExhaustedError."""
    loopback.mode = "spend_limit"
    limit = pytest.raises(modal.exception.ResourceExhaustedError, match=r"Workspace .* has exceeded its spend limit")
    with limit, running("double"):
        pass


@pytest.mark.slow
def test_spend_limit_during_a_call(loopback: LoopbackModal, running: Any) -> None:
    """At the spend limit containers are stopped, and the caller gets ResourceExhaustedError, later ConflictError."""
    with running("wait", detach=True) as wait:
        call = wait.spawn()
        loopback.wait_for_text("waiting")
        loopback.exceed_spend_limit()
        with pytest.raises(modal.exception.ResourceExhaustedError, match="has exceeded its spend limit"):
            call.get()
        loopback.wait_for_text("ended by KeyboardInterrupt")
        loopback.mode = "disabled"
        with pytest.raises(modal.exception.ConflictError, match=r"workspace .* is disabled"):
            call.get()
        loopback.mode = "recorded"


@pytest.mark.slow
def test_wait_for_capacity_is_in_the_apps_log(loopback: LoopbackModal, running: Any) -> None:
    """A call waits for a worker, and the app's log has the reason, without an id of a call."""
    loopback.mode = "capacity_wait"
    with running("double", gpu="L40S") as double:
        call = double.spawn(2)
        wait_for_line(loopback, "is waiting to be scheduled on a GPU_L40S worker.")
        with pytest.raises(TimeoutError):
            call.get(timeout=0)
        assert call.get() == 4
    [line] = [entry for entry in loopback.log() if "waiting to be scheduled" in entry.data]
    assert (line.call_id, line.container_id, line.function_id) == ("", "", loopback.functions[0].id)
    [container] = loopback.containers(running=False)
    assert container.ready_at - container.created_at >= 3.0


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["GB200", "B200+", "RTX-PRO-6000", "H100!"])
def test_documented_gpus_are_accepted(running: Any, gpu: str) -> None:
    """Every GPU of Modal's documentation is accepted."""
    with running("double", gpu=gpu):
        pass


# -- clusters ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("retries", [0, 1])
def test_dead_container_fails_a_clusters_call(loopback: LoopbackModal, clustered: Any, retries: int) -> None:
    """If a container of a cluster dies, the call fails; only a retry policy starts it again."""
    policy = modal.Retries(max_retries=retries, initial_delay=0.0) if retries else None
    with clustered("rank_waits", 2, retries=policy) as wait:
        call = wait.spawn(-1, "")
        for attempt in range(retries + 1):
            loopback.wait_until(lambda: sum(bool(c.running) for c in loopback.plane.scheduler.containers.values()) == 2)
            members = loopback.containers()
            assert len(loopback.containers(running=False)) == 2 * (attempt + 1)
            loopback.kill(members[1])
            loopback.wait_until(lambda members=members: all(c.state == "done" for c in members))  # type: ignore[misc]
        with pytest.raises(modal.exception.RemoteError, match="exit code 137"):
            call.get()
    assert len(loopback.containers(running=False)) == 2 * (retries + 1)


@pytest.mark.slow
def test_preempted_cluster_can_overlap_its_replacement(loopback: LoopbackModal, clustered: Any) -> None:
    """The replacement of a preempted cluster can start before the old containers have exited."""
    loopback.mode = "overlap"
    with clustered("rank_waits", 2) as wait:
        call = wait.spawn(-1, "")
        loopback.wait_for_text("rank 0 is up")
        loopback.wait_for_text("rank 1 is up")
        old = loopback.containers()
        loopback.preempt(old[1])
        every = loopback.plane.scheduler.containers
        loopback.wait_until(lambda: len([c for c in every.values() if c not in old and c.running]) == 2)
        assert [c.stop_cause for c in old] == ["preempted"] * 2
        assert loopback.function_calls[0].inputs[0].state == "running"
        call.cancel(terminate_containers=True)


@pytest.mark.parametrize(
    ("size", "gpu", "mode", "error"),
    [
        (2, "GB200:4", "recorded", None),
        (2, "H100:8", "recorded", None),
        (33, "H100:8", "recorded", modal.exception.InvalidError),
        (2, "H100:8", "no_clusters", modal.exception.PermissionDeniedError),
    ],
)
def test_clusters_that_are_refused(
    loopback: LoopbackModal, clustered: Any, size: int, gpu: str, mode: str, error: type[Exception] | None
) -> None:
    """Clusters have at most 32 containers of whole hosts, and an account may not be allowed to use them."""
    loopback.mode = mode
    if error is None:
        with clustered("rank_waits", size, gpu=gpu):
            return
    with pytest.raises(error), clustered("rank_waits", size, gpu=gpu):
        pass


def test_rates_have_the_recorded_names(loopback: LoopbackModal) -> None:
    """The rates of the workspace have the names that users have recorded, without those that Modal has removed."""
    rates = modal.Workspace.from_context().billing.rates()

    assert {"gpu_hour_cost_h100", "gpu_hour_cost_a10g", "cpu_hour_cost", "mem_gib_hour_cost"} <= set(rates)
    assert "old_name" not in set(rates)
