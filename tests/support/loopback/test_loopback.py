"""The loopback with the real client: the steps of a function call."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import modal
import pytest

from . import LoopbackModal
from .logs import STDOUT

MAIN = """
import sys
import modal
call = modal.FunctionCall.from_id(sys.argv[1])
print(call.get(timeout=60))
print("".join(entry.message for entry in call.logs.stream()), end="")
"""

SERVER = """
import importlib.util, sys, modal
sys.path.insert(0, {root!r})
from tests.support.loopback import LoopbackModal
spec = importlib.util.spec_from_file_location("loopback_jobs", {jobs!r})
jobs = importlib.util.module_from_spec(spec)
sys.modules["loopback_jobs"] = jobs
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()):
    spec.loader.exec_module(jobs)
with LoopbackModal() as server, server.activate():
    app = modal.App("killed")
    wait = app.function(image=modal.Image.from_registry("ubuntu:22.04"))(jobs.wait)
    with app.run():
        wait.spawn()
        container = server.wait_for_container("busy")
        print(*container.process.pids(), file=sys.__stdout__, flush=True)
        server.wait_for_no_container(600)
"""


def logged_text(call: Any, **filters: Any) -> str:
    """Return the text of a call's log."""
    return "".join(entry.message for entry in call.logs.fetch(**filters))


def test_call_returns_value_and_log(loopback: LoopbackModal, running: Any) -> None:
    """A call returns the function's value, and its output is logged with the call's id."""
    with running("double") as double:
        assert double.remote(21) == 42
        call = double.spawn(4)
        assert call.get() == 8
    assert loopback.log_text(call.object_id) == "doubling 4\n"
    assert loopback.log_text().startswith("imported\ndoubling 21\n")


def test_output_of_the_import_has_no_call_id(loopback: LoopbackModal, running: Any) -> None:
    """Output printed while the module is imported belongs to no call."""
    with running("double") as double:
        call = double.spawn(1)
        call.get()
        assert logged_text(call) == "doubling 1\n"
    assert "".join(e.data for e in loopback.log() if not e.call_id and e.descriptor == STDOUT) == "imported\n"


def test_log_is_streamed_while_the_function_runs(loopback: LoopbackModal, running: Any) -> None:
    """A log stream delivers output before the function returns."""
    with running("wait") as wait:
        call = wait.spawn("here I am")
        stream = call.logs.stream()
        assert next(stream).message.startswith("here I am")
        assert loopback.containers()[0].state == "busy"
        call.cancel()


def test_log_separates_stdout_and_stderr(running: Any) -> None:
    """Log entries can be selected by their stream."""
    with running("print_text") as print_text:
        call = print_text.spawn("out\n", "err\n")
        call.get()
        assert logged_text(call, source="stdout") == "out\n"
        assert logged_text(call, source="stderr") == "err\n"
        assert sorted(entry.source for entry in call.logs.tail(10)) == ["stderr", "stdout"]


def test_large_output_is_complete(loopback: LoopbackModal, running: Any) -> None:
    """A log stream delivers 5 MB of output without loss."""
    with running("print_text") as print_text:
        call = print_text.spawn("x" * 999 + "\n", times=5000)
        seen = "".join(entry.message for entry in call.logs.stream())
    assert seen == ("x" * 999 + "\n") * 5000


def test_large_values_are_sent_as_blobs(loopback: LoopbackModal, running: Any) -> None:
    """Large arguments and results are stored as blobs, small ones are not."""
    data = os.urandom(5 << 20)
    with running("echo") as echo:
        assert echo.remote(data) == data
        assert echo.spawn(data[:20_000]).get() == data[:20_000]
    assert len(loopback.calls("BlobCreate", container=False)) == 2
    assert len(loopback.calls("BlobCreate", container=True)) == 2


def test_environment_has_secrets_and_image_variables(loopback: LoopbackModal, running: Any) -> None:
    """Variables of secrets, image and function are set in the container, the client's token is not."""
    loopback.secret("named", {"FROM_NAME": "one"})
    image = modal.Image.from_registry("ubuntu:22.04").env({"FROM_IMAGE": "it's two"})
    secrets = [modal.Secret.from_name("named"), modal.Secret.from_dict({"FROM_DICT": "three"})]
    with running("environment", image=image, secrets=secrets, env={"FROM_FUNCTION": "four"}) as environment:
        env = environment.remote()
    assert (env["FROM_NAME"], env["FROM_IMAGE"], env["FROM_DICT"]) == ("one", "it's two", "three")
    assert env["FROM_FUNCTION"] == "four"
    assert not {"MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"} & set(env)


def test_container_does_not_see_this_machine(running: Any, tmp_path: Path) -> None:
    """A container runs as root in its own PID namespace, without this machine's folders."""
    (tmp_path / "file").write_text("")
    with running("facts") as facts:
        seen = facts.remote()
    with running("tree") as tree:
        # Not the folder with the tests: it may be below the Python environment, which the container uses.
        assert tree.remote(str(tmp_path)) == []
    assert seen["cwd"] == "/root"
    assert seen["pid"] < 10
    assert seen["uid"] == 0
    assert set(seen["home"]) <= {"loopback_jobs.py", "__pycache__", ".pyenv", ".local"}
    assert seen["python"] == sys.version_info[:2]


def test_mounts_are_copied_into_each_container(loopback: LoopbackModal, running: Any, tmp_path: Path) -> None:
    """Mounted files are at their paths, and a change in one container is not seen in the next."""
    (tmp_path / "code" / "sub").mkdir(parents=True)
    (tmp_path / "code" / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "code" / "run.sh").chmod(0o755)
    (tmp_path / "code" / "sub" / "large").write_bytes(b"l" * (5 << 20))
    image = modal.Image.from_registry("ubuntu:22.04").add_local_dir(tmp_path / "code", "/root/SkyRL")
    with running("tree", image=image) as tree:
        assert tree.remote("/root/SkyRL") == ["run.sh", "sub", "sub/large"]
    with running("write", image=image) as write:
        write.remote("/root/SkyRL/run.sh", "changed")
    with running("read", image=image) as read:
        assert read.remote("/root/SkyRL/run.sh") == b"#!/bin/sh\n"
        assert len(read.remote("/root/SkyRL/sub/large")) == 5 << 20


def test_only_missing_files_are_uploaded(loopback: LoopbackModal, running: Any, tmp_path: Path) -> None:
    """Files that the server already has are not uploaded again."""
    code = tmp_path / "code"
    code.mkdir()
    for name in "abc":
        (code / name).write_text(f"{name}{time.time_ns()}")

    def run() -> int:
        before = len(loopback.calls("MountPutFile"))
        image = modal.Image.from_registry("ubuntu:22.04").add_local_dir(code, "/root/SkyRL")
        with running("tree", image=image) as tree:
            assert tree.remote("/root/SkyRL") == ["a", "b", "c"]
        return len(loopback.calls("MountPutFile")) - before

    assert run() == 4  # three files and the module with the function
    assert run() == 0
    (code / "b").write_text("edited")
    assert run() == 1


def test_image_layers_are_built_once(loopback: LoopbackModal, running: Any) -> None:
    """Two apps with the same image build each of its layers once."""
    image = modal.Image.from_registry("ubuntu:22.04").run_commands("make it").env({"A": "1"})
    for _ in range(2):
        with running("double", image=image):
            pass
    assert len(loopback.calls("ImageJoinStreaming")) == 3
    assert [line for line in loopback.images[-1].commands if "make" in line] == ["RUN make it"]


def test_call_is_found_by_id_in_another_process(loopback: LoopbackModal, running: Any) -> None:
    """FunctionCall.from_id returns value and log in another process."""
    with running("double") as double:
        call = double.spawn(8)
        done = subprocess.run(
            [sys.executable, "-c", MAIN, call.object_id],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **loopback.env()},
        )
    assert done.stdout == "16\ndoubling 8\n"


def test_exception_is_raised_in_the_caller(running: Any) -> None:
    """An exception of the function is raised by the blocking call."""
    volume = modal.Volume.from_name("v", create_if_missing=True)
    with running("fail_until", volumes={"/data": volume}) as fail, pytest.raises(ValueError, match="attempt 1"):
        fail.remote("/data/n", "v", 9)


@pytest.mark.parametrize("how", ["remote", "spawn"])
def test_retries_run_the_input_again(loopback: LoopbackModal, running: Any, how: str) -> None:
    """The function's retries apply to blocking and to spawned calls."""
    volume = modal.Volume.from_name("v", create_if_missing=True)
    retries = modal.Retries(max_retries=2, initial_delay=0.0, backoff_coefficient=1.0)
    with running("fail_until", volumes={"/data": volume}, retries=retries) as fail:
        arguments = ("/data/n", "v", 3)
        assert (fail.remote(*arguments) if how == "remote" else fail.spawn(*arguments).get()) == 3
        assert loopback.function_calls[0].inputs[0].retry_count == 2
        with pytest.raises(ValueError, match="attempt 6"):
            fail.remote("/data/n", "v", 99) if how == "remote" else fail.spawn("/data/n", "v", 99).get()


def test_get_with_timeout_0_does_not_wait(running: Any) -> None:
    """FunctionCall.get raises TimeoutError immediately while the call runs."""
    with running("wait") as wait:
        call = wait.spawn()
        with pytest.raises(TimeoutError):
            call.get(timeout=0)


def test_cancelled_container_is_used_again(loopback: LoopbackModal, running: Any) -> None:
    """Cancelling raises InputCancellation in the container, which then runs the next input."""
    with running("wait") as wait:
        call = wait.spawn()
        loopback.wait_for_text("waiting")
        call.cancel()
        with pytest.raises(modal.exception.RemoteError):
            call.get()
        assert "ended by InputCancellation\n" in loopback.log_text(call.object_id)
        container = loopback.wait_for_container("idle")
        assert wait.remote("again", 0.0) == "waited"
        assert [c.id for c in loopback.containers()] == [container.id]


def test_container_that_ignores_a_cancellation_is_killed(loopback: LoopbackModal, running: Any) -> None:
    """A container that ignores the cancellation of its input is killed after the grace period."""
    loopback.plane.cancel_grace = 0.5
    with running("stubborn") as stubborn:
        call = stubborn.spawn()
        container = loopback.wait_for_container("busy")
        loopback.wait_for_text("waiting")  # a cancellation before it ignores signals would end it
        call.cancel()
        with pytest.raises(modal.exception.RemoteError):
            call.get()
        loopback.wait_until(lambda: container.state == "done")
    assert container.returncode == 137


def test_timeout_ends_the_container(loopback: LoopbackModal, running: Any) -> None:
    """At a timeout the call raises FunctionTimeoutError, and the container exits."""
    with running("wait", timeout=1) as wait:
        with pytest.raises(modal.exception.FunctionTimeoutError, match="hit its timeout of 1s"):
            wait.remote()
        loopback.wait_for_no_container()
    assert "ended by InputCancellation" in loopback.log_text()


def test_container_with_another_python_version(loopback: LoopbackModal, running: Any) -> None:
    """Containers may have another minor version of Python than the client."""
    other = os.environ.get("LOOPBACK_OTHER_PYTHON")
    if not other:
        pytest.skip("LOOPBACK_OTHER_PYTHON names no Python with modal")
    from .container import Python

    loopback.plane.python = Python.of(other)
    with running("facts") as facts:
        assert tuple(facts.remote()["python"]) != sys.version_info[:2]


def test_modal_run_command(loopback: LoopbackModal, tmp_path: Path) -> None:
    """`modal run` runs a local entrypoint and shows the container's output."""
    script = tmp_path / "main.py"
    script.write_text(
        "import modal\n"
        "app = modal.App('script')\n"
        "@app.function(image=modal.Image.debian_slim())\n"
        "def f(x):\n    print('in the container', x)\n    return x\n"
        "@app.local_entrypoint()\n"
        "def main(x: int = 3):\n    print('result', f.remote(x))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "modal", "run", str(script), "--x", "7"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **loopback.env()},
    )
    assert done.returncode == 0, done.stderr
    assert "in the container 7" in done.stdout
    assert "result 7" in done.stdout


def test_map_returns_values_in_order(running: Any) -> None:
    """Function.map returns the values in the order of their arguments."""
    with running("double", max_containers=2) as double:
        assert list(double.map(range(20))) == list(range(0, 40, 2))


def test_containers_do_not_share_ports(running: Any) -> None:
    """Two containers listen on the same port at the same time."""
    volume = modal.Volume.from_name("v", create_if_missing=True)
    with running("holds_port", volumes={"/data": volume}) as holds:
        calls = [holds.spawn(6379, "v", name, 2) for name in "ab"]
        assert [call.get() for call in calls] == [2, 2]


def test_tunnel_connects_to_the_container(loopback: LoopbackModal, running: Any) -> None:
    """A tunnel's port on this machine is connected to the container's port."""
    with running("serve_through_tunnel") as serve:
        call = serve.spawn()
        loopback.wait_for_text("\n", call.object_id)
        _, host, port = loopback.log_text(call.object_id).split()
        with socket.create_connection((host, int(port)), 30) as connection:
            connection.sendall(b"hello")
            assert connection.recv(100) == b"received hello"
        assert call.get() == b"hello"


def test_modal_command_line(loopback: LoopbackModal, running: Any, tmp_path: Path) -> None:
    """The modal command manages volumes, apps and containers of the loopback."""

    def cli(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "modal", *arguments],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **loopback.env()},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "file").write_text("content")
    cli("volume", "create", "cli")
    cli("volume", "put", "cli", str(tmp_path / "file"), "/sub/file")
    assert "sub/file" in cli("volume", "ls", "cli", "/sub")
    cli("volume", "get", "cli", "/sub/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "content"
    with running("wait", detach=True) as wait:
        call = wait.spawn()
        loopback.wait_for_text("waiting", call.object_id)
        app = loopback.apps[-1]
        assert app.id in cli("app", "list")
        assert loopback.containers()[0].id in cli("container", "list")
        assert "waiting" in cli("app", "logs", app.id)
        cli("app", "stop", "--yes", app.id)
        loopback.wait_for_no_container()


def test_close_removes_processes_files_and_port(tmp_path: Path, running: Any) -> None:
    """Closing a server leaves no process, no file and no listening port."""
    folder = tmp_path / "own"
    server = LoopbackModal(folder, stop_grace=1)
    with server.activate(), running("stubborn", detach=True) as stubborn:
        stubborn.spawn()
        server.wait_for_text("waiting")
        container = server.wait_for_container("busy")
        assert container.process is not None
        pids = container.process.pids()
        assert len(pids) >= 3
    sockets = server._sockets
    server.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not sockets.exists()
    assert list(folder.iterdir()) == []
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.plane.port), 1)


def test_containers_die_with_a_killed_server(tmp_path: Path, jobs: Any) -> None:
    """All processes of a container exit when the server's process is killed."""
    script = tmp_path / "script.py"
    script.write_text(SERVER.format(jobs=str(Path(jobs.__file__)), root=str(Path(__file__).parents[3])))
    temporary = tempfile.mkdtemp(
        prefix="lk-"
    )  # not removed by a killed server; short, since paths of sockets are limited
    env = {**os.environ, "TMPDIR": temporary}
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) >= 2
    ends = [os.pidfd_open(pid) for pid in pids]
    process.kill()
    process.wait()
    process.stdout.close()
    for end in ends:
        assert select.select([end], [], [], 30)[0]
        os.close(end)
    shutil.rmtree(temporary)
