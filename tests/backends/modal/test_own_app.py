"""Tests of the building blocks for apps of users, with the command ``modal run``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_modal.modal import create_modal_volume, run_script
from tests.support.loopback import LoopbackModal

APP = """
import modal
from skyrl_modal.modal import create_modal_image, create_modal_volume, run_script

app = modal.App("own")
image, volume = create_modal_image(), create_modal_volume("own-data")
run = app.function(image=image, volumes=volume, timeout=300)(run_script)

@app.function(image=image, volumes=volume, timeout=300, serialized=False)
def two_steps(command: str) -> list[int]:
    first = run_script("echo prepared > /root/data/prepared", ray=False)
    return [first, run_script(command, ray=False, env={"STEP": "two"}, volumes=volume, check=False)]

@app.local_entrypoint()
def main(command: str, ray: bool = False) -> None:
    print("returned", run.remote(command, ray=ray))

@app.local_entrypoint()
def steps(command: str) -> None:
    print("returned", two_steps.remote(command))
"""


def modal_run(
    server: LoopbackModal, checkout: Path, folder: Path, *arguments: str, entrypoint: str = "main"
) -> subprocess.CompletedProcess[str]:
    """Run an entrypoint of the app with ``modal run``."""
    script = folder / "own_app.py"
    script.write_text(APP)
    return subprocess.run(
        [sys.executable, "-m", "modal", "run", f"{script}::{entrypoint}", *arguments],
        env={**os.environ, **server.env(), "SKYRL_REPO_ROOT": str(checkout)},
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_command_runs_in_the_checkout(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """The command finds the selected files at /root/SkyRL and the volume at /root/data, and its output is printed."""
    command = 'pwd; cat train.py; ls *.secret || echo "$NUM_GPUS GPUs"; echo kept > $SKYRL_DATA/kept'

    done = modal_run(server, checkout, tmp_path, "--command", command)

    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("/root/SkyRL", "print('training')", "0 GPUs", "returned 0"):
        assert f"{line}\n" in done.stdout
    again = modal_run(
        server, checkout, tmp_path, "--command", "cat /root/data/kept; ls -a /root/data/.skyrl_modal/runs"
    )
    assert "kept\n" in again.stdout


@pytest.mark.slow
def test_failed_command_raises(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """A command that fails is an error with its exit code in the caller's process."""
    done = modal_run(server, checkout, tmp_path, "--command", "exit 7")

    assert done.returncode != 0
    assert "returned non-zero exit status 7" in done.stdout + done.stderr


@pytest.mark.slow
def test_steps_in_one_container(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """A function may run several commands; the exit code is returned if errors are not raised."""
    command = 'cat /root/data/prepared; echo "step $STEP"; exit 3'

    done = modal_run(server, checkout, tmp_path, "--command", command, entrypoint="steps")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "prepared\nstep two\n" in done.stdout
    assert "returned [0, 3]" in done.stdout


@pytest.mark.ray
def test_ray_runs_for_the_command(server: LoopbackModal, checkout: Path, tmp_path: Path) -> None:
    """Ray runs while the command runs, and a driver of the command connects to it."""
    (checkout / "driver.py").write_text("import ray\nray.init()\nprint('nodes', len(ray.nodes()))\n")

    done = modal_run(server, checkout, tmp_path, "--command", "python driver.py", "--ray")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "nodes 1\n" in done.stdout


def test_use_outside_of_modal_is_an_error() -> None:
    """The command is not run on the caller's own machine by mistake."""
    with pytest.raises(RuntimeError, match=r"Launcher\.run"):
        run_script("true")


def test_volume_has_skyrls_path() -> None:
    """The volume is at the path that SkyRL's script uses."""
    assert list(create_modal_volume("other", "/root/other")) == ["/root/other"]
    assert list(create_modal_volume()) == ["/root/data"]
