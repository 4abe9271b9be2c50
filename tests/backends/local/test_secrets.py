"""Secrets of a run on this machine: arguments of programs, logs of Ray on all ranks, records and messages."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path

import pytest

from skyrl_modal import Launcher, SecretSpec, VolumeSpec
from skyrl_modal.backends.local.run_lock import state_folder
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.protocol.state import FailureCause
from tests.conftest import MakeLauncher
from tests.support.processes import MARK, marked_processes

VALUE = "k3y-0123456789"
#: Prints the value in tasks on all nodes, in pieces and in a traceback.
TASKS = """python3 - <<'EOF'
import os, sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
ray.init(logging_level="ERROR")
@ray.remote(num_cpus=0.1)
def show():
    key = os.environ["KEY"]
    print("printed", key, flush=True)
    sys.stderr.write("written " + key[:5])
    sys.stderr.flush()
    sys.stderr.write(key[5:] + repr({"key": key}) + chr(10))
    return ray.get_runtime_context().get_node_id()
@ray.remote
def fail():
    raise ValueError("refused: " + os.environ["KEY"])
ids = [node["NodeID"] for node in ray.nodes()]
print("nodes", len(set(ray.get([show.options(scheduling_strategy=On(id, soft=False)).remote() for id in ids]))))
try:
    ray.get(fail.remote())
except Exception as error:
    print(error)
EOF"""


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    """A variable of the caller with a secret value."""
    monkeypatch.setenv("KEY", VALUE)
    return "KEY"


def kept_files(launcher: Launcher, run_id: str) -> dict[str, bytes]:
    """Return the files of a run in its folder and in this machine's state, by path."""
    folder = volume_folder(launcher.volumes[0].name) / ".skyrl_modal" / "runs" / run_id
    roots = [folder, state_folder(run_id)]
    paths = [path for root in roots for path in root.rglob("*") if path.is_file()]
    assert paths
    assert not any(stat.S_IMODE(path.stat().st_mode) & 0o077 for path in paths if path.is_relative_to(folder / "ray"))
    return {str(path): path.read_bytes() for path in paths}


@pytest.mark.parametrize("other_name", [None, "SAME_VALUE"])
def test_no_value_is_an_argument_of_a_program(
    launcher: MakeLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_name: str | None
) -> None:
    """A value that is a path below /tmp is in no argument of the run's programs, and the command can read the file."""
    value = tmp_path / "key-file"
    value.write_text("content")
    for name in ("KEY", other_name or "KEY"):
        monkeypatch.setenv(name, str(value))
    made, output, commands = launcher(secrets=["KEY"]), bytearray(), []

    def receive(data: bytes) -> None:
        output.extend(data)
        commands.extend(marked_processes(os.environ[MARK]).values())
        (volume_folder(made.volumes[0].name) / "go").touch()

    # The shell reads the file itself: the value would be an argument of `cat`, which may still be running.
    made.run('printf %s "$(< "$KEY")"; until [ -e /root/data/go ]; do sleep 0.05; done', output=receive, quiet=True)

    assert bytes(output) == b"content"
    assert any("container/__main__.py" in command for command in commands)
    assert not [command for command in commands if str(value) in command]


def test_a_failed_start_of_ray_shows_no_value(
    checkout: Path, secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What `ray start` prints is masked in its log, the message, the result and the log of the supervisor."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ray").write_text('#!/bin/sh\nprintf "the key is $KEY"; echo "$RAY_AUTH_TOKEN." >&2; exit 3\n')
    (programs / "ray").chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    launcher = Launcher(backend="local", checkout=checkout, volumes=[VolumeSpec(name="ray-key")], secrets=[secret])

    result = launcher.run("echo never")

    assert result.cause is FailureCause.RAY_NOT_READY
    assert "the key is ********" in result.detail
    assert "the key is ********" in capfd.readouterr().err
    files = kept_files(launcher, result.run_id)
    assert not [path for path, content in files.items() if VALUE.encode() in content]
    assert len([path for path, content in files.items() if b"the key is ********" in content]) >= 3


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("nodes", [1, 2])
def test_logs_of_ray_contain_no_value(
    checkout: Path, secret: str, capfd: pytest.CaptureFixture[str], nodes: int
) -> None:
    """What tasks print is masked in the output and in the kept logs of Ray of all ranks."""
    launcher = Launcher(
        backend="local", checkout=checkout, volumes=[VolumeSpec(name="ray-logs")], secrets=[secret], nodes=nodes
    )
    output = io.BytesIO()

    result = launcher.run(TASKS, output=output)

    assert result.returncode == 0
    assert f"nodes {nodes}\n".encode() in output.getvalue()
    assert b"refused: ********" in output.getvalue()
    assert VALUE not in output.getvalue().decode() + capfd.readouterr().err + repr(result)
    files = kept_files(launcher, result.run_id)
    assert not [path for path, content in files.items() if VALUE.encode() in content]
    for rank in range(nodes):
        logs = [content for path, content in files.items() if f"logs/{rank}/" in path and "/ray/worker-" in path]
        assert any(b"printed ********" in content for content in logs)
        assert any(b"written ********{'key': '********'}" in content for content in logs)


def test_short_value_is_masked_in_the_records(launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short value in the command, env, name or tags is a warning, and masked in the records on the volume."""
    monkeypatch.setenv("KEY", "hunt3r")
    made = launcher(secrets=["KEY"], env={"OTHER": "x-hunt3r"}, tags=["hunt3r"], name="hunt3r")

    result = made.run("echo hunt3r; exit 3", quiet=True)

    folder = volume_folder(made.volumes[0].name) / ".skyrl_modal" / "runs" / result.run_id
    assert not [path for path in folder.rglob("*") if path.is_file() and b"hunt3r" in path.read_bytes()]


def test_optional_secrets_are_left_out(
    launcher: MakeLauncher, secret: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run starts without variables that are not set and secrets that are stored on Modal; messages name them."""
    monkeypatch.delenv("ABSENT", raising=False)
    variables = [SecretSpec(name, source="environment", optional=True) for name in (secret, "ABSENT")]
    output = io.BytesIO()

    result = launcher(secrets=[*variables, SecretSpec("stored", optional=True)]).run(
        'echo "$KEY" "${ABSENT-no}"', output=output
    )

    messages = capfd.readouterr().err
    assert (result.returncode, output.getvalue()) == (0, b"******** no\n")
    assert "optional secret ABSENT is left out" in messages
    assert "optional secret stored is left out" in messages
    assert "optional secret KEY" not in messages
