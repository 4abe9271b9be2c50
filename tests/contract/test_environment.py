"""Variables that a caller declares, and commands that are longer than an argument may be, on every backend."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Run, SpecError
from tests.conftest import MakeLauncher


def output_of(launcher: MakeLauncher, command: str, **fields: Any) -> str:
    """Return the output of a command that succeeds."""
    output = io.BytesIO()
    launcher(**fields).run(command, output=output, quiet=True, check=True)
    return output.getvalue().decode()


def test_variables_of_ray_without_ray(launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without Ray leaves the variables of Ray to its caller, in `env` and in `secrets`."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")  # this one is not declared, but in the caller's environment

    declared = output_of(
        launcher,
        'echo "$RAY_ADDRESS $RAY_AUTH_MODE ${#RAY_AUTH_TOKEN}"',
        env={"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token"},
        secrets=["RAY_AUTH_TOKEN"],
    )

    assert declared == "10.0.0.1:6379 token 16\n"
    assert output_of(launcher, 'echo "${RAY_ADDRESS-none}"') == "none\n"


def test_declared_lists_of_folders_are_kept(launcher: MakeLauncher) -> None:
    """The caller's PATH and PYTHONPATH are kept after what the run needs. LD_LIBRARY_PATH is the caller's."""
    names = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
    values = {"PATH": "/opt/a/bin:/usr/bin:/bin", "PYTHONPATH": "/opt/a:/opt/b", "LD_LIBRARY_PATH": "/opt/a/lib"}

    text = output_of(launcher, "command -v python3; " + "; ".join(f'echo "${name}"' for name in names), env=values)

    python, path, python_path, libraries = text.splitlines()
    assert "/opt/a/bin:/usr/bin:/bin" in path
    assert path.startswith(str(Path(python).parent))
    assert python_path.partition(":")[2] == "/opt/a:/opt/b"
    assert libraries == "/opt/a/lib"


def test_files_of_trackers_are_on_the_volume(launcher: MakeLauncher, tmp_path: Path) -> None:
    """What a tracker writes remains on the volume. Without resuming, W&B has a run for each attempt, as before."""
    made = launcher(env={"MLFLOW_TRACKING_URI": "https://mlflow.example"})
    command = 'mkdir -p "$TENSORBOARD_DIR" && echo data > "$TENSORBOARD_DIR/events"; echo "$MLFLOW_TRACKING_URI"'
    output = io.BytesIO()

    result = made.run(f'{command}; echo "${{WANDB_RUN_ID-none}}"', output=output, quiet=True, check=True)

    assert output.getvalue().decode() == "https://mlflow.example\nnone\n"
    folder = f"/root/data/.skyrl_modal/runs/{result.run_id}/trackers"
    assert made.pull(f"{folder}/tensorboard/events", tmp_path / "events").read_text() == "data\n"


def test_variable_of_the_run_starts_nothing(launcher: MakeLauncher) -> None:
    """A variable that the run sets is refused where it is declared, on every backend."""
    with pytest.raises(SpecError) as caught:
        launcher(env={"NUM_GPUS": "4"})

    assert (caught.value.field, caught.value.value) == ("env", "NUM_GPUS")


@pytest.mark.parametrize("size", [131_072, 300_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_long_command(launcher: MakeLauncher, size: int, tmp_path: Path) -> None:
    """A long command has the `$0`, the empty input and the exit code of a short one. Its record is complete."""
    command = f'printf "%s %s " "$0" "$(cat)"; printf %s {"x" * size} | sha256sum; exit 7'
    output, made = io.BytesIO(), launcher()

    result = made.run(command, output=output, quiet=True)

    shell, digest, _ = output.getvalue().decode().split()
    assert (result.returncode, shell) == (7, "/bin/bash")
    assert digest == hashlib.sha256(b"x" * size).hexdigest()
    path = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}/job.json", tmp_path / "job.json")
    assert json.loads(path.read_text())["command"] == command
    assert Run.attach(result.run_id).state is result.state


def test_largest_variables_reach_the_command(launcher: MakeLauncher) -> None:
    """Variables that are accepted where they are declared can be passed to the command."""
    values = {f"V{number}": "x" * 131_000 for number in range(13)}

    text = output_of(launcher, 'echo "${#V0} ${#V12}"', env=values)

    assert text == "131000 131000\n"
