"""A Ray of the run's own: up before the command, nobody else's, and gone after it."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_modal import CommandFailed, Launcher, RaySpec, RunState, VolumeSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

DRIVER = """python3 - <<'EOF'
import os, ray
ray.init(logging_level="ERROR")
@ray.remote
def node():
    return ray.get_runtime_context().get_node_id()
print("nodes", len(ray.nodes()), "task", ray.get(node.remote()) == ray.nodes()[0]["NodeID"], os.environ["RAY_ADDRESS"])
EOF"""


def make(checkout: Path, name: str, **fields: object) -> Launcher:
    return Launcher(**{"backend": "local", "checkout": checkout, "volumes": [VolumeSpec(name=name)], **fields})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def users_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray that the user started before, on a port of its own."""
    port, folder = free_port(), Path("/tmp") / f"users-ray-{os.getpid()}"
    ray = Path(sys.executable).parent / "ray"
    process = subprocess.Popen(
        [ray, "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false",
         "--disable-usage-stats", "--num-cpus=1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "Ray runtime started" in line:
            break
    else:
        pytest.fail("the user's Ray did not start")
    drain = threading.Thread(target=process.stdout.read, daemon=True)
    drain.start()
    yield f"127.0.0.1:{port}"
    assert process.poll() is None, "the user's Ray was ended by somebody"
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    drain.join()
    shutil.rmtree(folder, ignore_errors=True)


def test_two_runs_and_the_users_own_ray_do_not_meet(checkout: Path, users_ray: str) -> None:
    outputs = [io.BytesIO(), io.BytesIO()]
    launchers = [make(checkout, f"ray-{os.getpid()}-{number}", ray=RaySpec(num_cpus=1)) for number in range(2)]
    threads = [
        threading.Thread(target=launcher.run, args=(DRIVER,), kwargs={"output": output, "check": True, "quiet": True})
        for launcher, output in zip(launchers, outputs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    words = [output.getvalue().decode().split() for output in outputs]
    assert [line[:4] for line in words] == [["nodes", "1", "task", "True"]] * 2
    addresses = {line[4] for line in words}
    assert len(addresses) == 2
    assert users_ray not in addresses
    alive = subprocess.run(
        [Path(sys.executable).parent / "ray", "status", "--address", users_ray], capture_output=True, check=False
    )
    assert alive.returncode == 0


@pytest.mark.slow
def test_eight_runs_at_once_each_have_a_ray_of_their_own(checkout: Path) -> None:
    outputs = [io.BytesIO() for _ in range(8)]
    launchers = [
        make(checkout, f"eight-{os.getpid()}-{number}", ray=RaySpec(num_cpus=1, start_timeout=240))
        for number in range(8)
    ]
    threads = [
        threading.Thread(target=launcher.run, args=(DRIVER,), kwargs={"output": output, "quiet": True})
        for launcher, output in zip(launchers, outputs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [output.getvalue().decode().split()[:4] for output in outputs] == [["nodes", "1", "task", "True"]] * 8


def test_a_taken_port_is_left_to_whoever_has_it(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        output = io.BytesIO()

        result = make(checkout, "ray-port", ray=RaySpec(port=port)).run('echo "$RAY_ADDRESS"', output=output)

    assert result.returncode == 0
    assert not output.getvalue().strip().endswith(str(port).encode())
    assert f"port {port} is taken" in capfd.readouterr().err


def test_a_ray_that_fails_to_start_ends_the_run_with_its_last_words(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "ray").write_text("#!/bin/sh\necho the cause of it all; exit 3\n")
    (broken / "ray").chmod(0o755)
    # The caller's own Python comes first on the run's PATH: a link to it, beside a ray that does not work.
    python = broken / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))

    result = make(checkout, "ray-broken").run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    with pytest.raises(CommandFailed, match=r"(?s)exit code 3.*the cause of it all"):
        result.check_returncode()


def test_no_ray_on_the_path_names_the_remedy(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    result = make(checkout, "ray-none").run("echo never", quiet=True)

    assert result.returncode == 125
    assert 'pip install "skyrl-modal[local]"' in result.detail


def test_a_start_that_takes_too_long_is_ended(checkout: Path) -> None:
    result = make(checkout, "ray-slow", ray=RaySpec(start_timeout=0.5)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert "not ready within 0.5 s" in result.detail


def test_a_ray_that_dies_ends_the_run_and_a_retry_gets_a_new_one(checkout: Path) -> None:
    output = io.BytesIO()
    # In the run's own process namespace nothing else is a raylet; its pid is read, not guessed by name outside.
    kill = (
        'for p in /proc/[0-9]*; do case "$(readlink $p/exe)" in */raylet) kill -9 ${p#/proc/};; esac; done; '
        "echo killed $SKYRL_ATTEMPT; sleep 600"
    )

    result = make(checkout, "ray-dies", retries=1).run(
        f'if [ "$SKYRL_ATTEMPT" = 1 ]; then {kill}; else {DRIVER}\nfi', output=output, quiet=True
    )

    text = output.getvalue().decode()
    assert text.startswith("killed 1\n")
    assert "attempt 1 ended" in text
    assert "nodes 1 task True" in text
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)


def test_rays_logs_are_kept_with_the_run(checkout: Path, tmp_path: Path) -> None:
    made = make(checkout, "ray-logs")

    result = made.run("true", quiet=True)

    folder = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}/ray/0", tmp_path / "logs")
    assert (folder / "start.log").read_text()
    assert list(folder.glob("raylet*"))


def test_a_dashboard_that_is_not_installed_is_told_with_the_remedy(checkout: Path) -> None:
    # These tests' own environment has ray without its extra.
    result = make(checkout, "ray-dashboard", ray=RaySpec(dashboard=True)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert 'pip install "ray[default]"' in result.detail
