"""Tests of ``modal run examples/main.py`` with the real command line on the loopback."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import saving_command
from tests.support.loopback import LoopbackModal

MAIN = Path(__file__).resolve().parents[2] / "examples" / "main.py"
MODAL_RUN = [sys.executable, "-m", "modal", "run"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoopbackModal]:
    """Yield a control plane, and fail the test if a request was not handled."""
    with LoopbackModal(tmp_path, scaledown=1, client_timeout=5) as server:
        yield server
        assert server.unimplemented == []
        assert server.errors == []


@pytest.fixture
def environment(server: LoopbackModal, tmp_path: Path) -> dict[str, str]:
    """Return the variables that select the control plane, a checkout, an app name and GPUs."""
    checkout = tmp_path / "SkyRL"
    (checkout / "skyrl-gym").mkdir(parents=True)
    (checkout / "train.py").write_text("print('training')\n")
    return {
        **os.environ, **server.env(), "SKYRL_REPO_ROOT": str(checkout), "MODAL_APP_NAME": "mine", "MODAL_GPU": "A100:4"
    }  # fmt: skip


def modal_run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `modal run examples/main.py` with arguments."""
    return subprocess.run(
        [*MODAL_RUN, str(MAIN), *arguments], env=environment, check=False, capture_output=True, text=True, timeout=200
    )


@pytest.mark.ray
def test_modal_run_exits_with_the_commands_exit_code(server: LoopbackModal, environment: dict[str, str]) -> None:
    """The command runs in the checkout with Ray and GPUs, and `modal run` exits with its exit code."""
    command = 'python3 train.py; echo "$RAY_ADDRESS $NUM_GPUS $PWD"; exit 7'

    done = modal_run(environment, "--command", command)

    assert done.returncode == 7, done.stdout + done.stderr
    assert "training\n127.0.0.1:6379 4 /root/SkyRL\n" in done.stdout
    assert "failed, exit code 7" in done.stderr
    [app] = server.apps  # the run uses the app of `modal run`
    assert (app.description, list(app.tags)) == ("mine", ["skyrl_run"])
    assert server.functions[0].gpus == [("A100", 4)]
    listed = subprocess.run(
        [sys.executable, "-m", "skyrl_modal", "logs", app.tags["skyrl_run"]],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert listed.stdout.startswith("training\n")


@pytest.mark.ray
def test_default_command_is_nvidia_smi(server: LoopbackModal, environment: dict[str, str]) -> None:
    """Without --command, nvidia-smi runs."""
    done = modal_run(environment)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^GPU 0: loopback$", done.stdout, re.MULTILINE)


@pytest.mark.ray
def test_command_saves_after_ctrl_c(server: LoopbackModal, environment: dict[str, str]) -> None:
    """After Ctrl-C the command saves, and its exit code is reported."""
    command = saving_command(signals="INT")
    process = subprocess.Popen(
        [*MODAL_RUN, str(MAIN), "--command", command],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        server.wait_for_text("up\n", timeout=150)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()

    assert "saving" in out
    assert "cancelled, exit code 3" in out
    assert process.returncode == 3
    server.wait_for_no_container(60)
