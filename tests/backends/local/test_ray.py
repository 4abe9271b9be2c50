"""The Ray of a run on this machine: it starts before the command, is separate from any other, and ends with the run."""

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

from skyrl_modal import CommandFailed, Launcher, RaySpec, RunState, SpecError, VolumeSpec
from skyrl_modal.protocol.state import FailureCause

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
    """Return a launcher with a volume of this name, and with Ray."""
    return Launcher(**{"backend": "local", "checkout": checkout, "volumes": [VolumeSpec(name=name)], **fields})


def free_port() -> int:
    """Return a port that no process uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def use_programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Make runs find these scripts, and this Python, first on their PATH."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))


@pytest.fixture
def users_ray() -> Iterator[str]:
    """Start a Ray as the user would, and return its address."""
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
    reader = threading.Thread(target=process.stdout.read, daemon=True)
    reader.start()
    yield f"127.0.0.1:{port}"
    assert process.poll() is None, "a run has ended the user's Ray"
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    reader.join()
    shutil.rmtree(folder, ignore_errors=True)


def run_together(launchers: list[Launcher]) -> list[list[str]]:
    """Run the driver with several launchers at the same time. Return the parts of each output."""
    outputs = [io.BytesIO() for _ in launchers]
    threads = [
        threading.Thread(target=launcher.run, args=(DRIVER,), kwargs={"output": output, "quiet": True})
        for launcher, output in zip(launchers, outputs, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [output.getvalue().decode().split() for output in outputs]


def test_runs_do_not_use_each_others_ray(checkout: Path, users_ray: str) -> None:
    """Two runs have a Ray each, and use neither each other's nor the user's, which is not stopped."""
    launchers = [make(checkout, f"ray-{os.getpid()}-{number}", ray=RaySpec(num_cpus=1)) for number in range(2)]

    outputs = run_together(launchers)

    assert [output[:4] for output in outputs] == [["nodes", "1", "task", "True"]] * 2
    addresses = {output[4] for output in outputs}
    assert len(addresses) == 2
    assert users_ray not in addresses
    status = subprocess.run(
        [Path(sys.executable).parent / "ray", "status", "--address", users_ray], capture_output=True, check=False
    )
    assert status.returncode == 0


@pytest.mark.slow
def test_eight_runs_at_the_same_time(checkout: Path) -> None:
    """Eight runs that start at the same time have a Ray each."""
    launchers = [
        make(checkout, f"eight-{os.getpid()}-{number}", ray=RaySpec(num_cpus=1, start_timeout=240))
        for number in range(8)
    ]

    assert [output[:4] for output in run_together(launchers)] == [["nodes", "1", "task", "True"]] * 8


def test_a_port_in_use_is_replaced(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """If the port of RaySpec is in use, the run's Ray has another one, and a message names the port."""
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        port = server.getsockname()[1]
        output = io.BytesIO()

        result = make(checkout, "ray-port", ray=RaySpec(port=port)).run('echo "$RAY_ADDRESS"', output=output)

    assert result.returncode == 0
    assert not output.getvalue().strip().endswith(str(port).encode())
    assert f"port {port} is " in capfd.readouterr().err


def test_ray_that_fails_to_start(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that does not start fails the run, and the error has the end of its log."""
    use_programs(tmp_path / "bin", monkeypatch, ray="#!/bin/sh\necho the reason for it; exit 3\n")

    result = make(checkout, "ray-broken").run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause is FailureCause.RAY_NOT_READY
    with pytest.raises(CommandFailed, match=r"(?s)code 3.*the reason for it"):
        result.check_returncode()


def test_missing_ray(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a `ray` program on its PATH a run fails, and the error has the command that installs it."""
    use_programs(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    result = make(checkout, "ray-none").run("echo never", quiet=True)

    assert (result.returncode, result.cause) == (125, FailureCause.RAY_NOT_INSTALLED)
    assert "On this machine: pip install ray." in result.detail


def install_ray(prefix: Path, version: str) -> Path:
    """Make a folder look like a Python environment with a version of Ray. Return its folder of programs."""
    (prefix / "lib" / "python3.11" / "site-packages" / f"ray-{version}.dist-info").mkdir(parents=True)
    (prefix / "bin").mkdir()
    (prefix / "bin" / "python").symlink_to(sys.executable)
    (prefix / "bin" / "ray").write_text(f"#!{prefix}/bin/python\n")
    (prefix / "bin" / "ray").chmod(0o755)
    return prefix / "bin"


def test_a_ray_without_authentication_is_refused(checkout: Path, tmp_path: Path) -> None:
    """A run with a Ray before 2.52 is refused before it starts, with the command that upgrades that Ray."""
    old = install_ray(tmp_path / "old", "2.51.1")

    with pytest.raises(SpecError) as refusal:
        make(checkout, "ray-old", env={"PATH": str(old)}).run("echo never", quiet=True)

    assert (refusal.value.field, refusal.value.value) == ("ray", "2.51.1")
    assert f"{old}/python -m pip install --upgrade 'ray>=2.52'" in refusal.value.remedy


def test_an_old_ray_is_accepted_without_a_cluster(checkout: Path, tmp_path: Path) -> None:
    """A run with `ray=None` does not depend on the version of Ray."""
    old = install_ray(tmp_path / "old", "2.51.1")
    path = f"{old}{os.pathsep}{os.environ['PATH']}"

    assert make(checkout, "ray-old", ray=None, env={"PATH": path}).run("true", quiet=True).succeeded


def test_start_timeout(checkout: Path) -> None:
    """A run whose Ray is not ready within `start_timeout` fails."""
    result = make(checkout, "ray-slow", ray=RaySpec(start_timeout=0.5)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause is FailureCause.RAY_NOT_READY
    assert "not ready within 0.5 s" in result.detail


def test_a_retry_has_a_new_ray(checkout: Path) -> None:
    """If Ray is killed, the attempt ends, and the next attempt has a new Ray."""
    output = io.BytesIO()
    # In the run's own process namespace there is no other raylet; outside of it, a search by name could find others.
    kill = (
        'for p in /proc/[0-9]*; do case "$(readlink $p/exe)" in */raylet) kill -9 ${p#/proc/};; esac; done; '
        "echo killed $SKYRL_ATTEMPT; sleep 600"
    )

    result = make(checkout, "ray-dies", retries=1).run(
        f'if [ "$SKYRL_ATTEMPT" = 1 ]; then {kill}; else {DRIVER}\nfi', output=output, quiet=True
    )

    text = output.getvalue().decode()
    assert text.startswith("killed 1\n")
    assert "nodes 1 task True" in text
    assert (result.state, result.attempts) == (RunState.SUCCEEDED, 2)


def test_logs_of_ray_are_kept(checkout: Path, tmp_path: Path) -> None:
    """The logs of Ray are in the run's folder after its end."""
    launcher = make(checkout, "ray-logs")

    result = launcher.run("true", quiet=True)

    folder = launcher.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}/logs/0", tmp_path / "logs")
    assert (folder / "1" / "ray" / "start.log").read_text()
    assert list((folder / "1" / "ray").glob("raylet*"))


def test_a_dashboard_that_is_not_installed(checkout: Path) -> None:
    """If Ray is installed without its dashboard, as for these tests, a run that requests the dashboard fails."""
    result = make(checkout, "ray-dashboard", ray=RaySpec(dashboard=True)).run("echo never", quiet=True)

    assert (result.state, result.returncode) == (RunState.FAILED, 125)
    assert result.cause is FailureCause.DASHBOARD_NOT_INSTALLED
    assert 'pip install "ray[default]"' in result.detail
