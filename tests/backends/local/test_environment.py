"""The environment of runs on this machine: its size, and what is inherited."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeLauncher

#: Declares more than this process may pass to a program, since its limit on the stack is 1 MiB.
TOO_LARGE = """
import resource, sys
from skyrl_modal import Launcher, SpecError
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
made = {"backend": "local", "checkout": sys.argv[1], "ray": None, "gpu": None}
print(Launcher(**made, env={"A": "x" * 100_000}).run("true", quiet=True).returncode)
try:
    Launcher(**made, env={"A": "x" * 130_000, "B": "x" * 130_000}).run("true", quiet=True)
except SpecError as error:
    print(error.field, error.remedy)
"""


def test_variables_that_this_machine_cannot_pass(checkout: Path) -> None:
    """With a smaller limit on the stack fewer variables fit. That is an error before the start, not exit code 125."""
    done = subprocess.run(
        [sys.executable, "-c", TOO_LARGE, str(checkout)], capture_output=True, text=True, check=True, timeout=60
    )

    returncode, error = done.stdout.splitlines()
    assert returncode == "0"
    assert error.startswith("env this machine permits ")


def test_long_command_without_namespaces(launcher: MakeLauncher, no_namespaces: None) -> None:
    """Long commands and declared variables are the same without namespaces."""
    output = io.BytesIO()
    made = launcher(env={"RAY_ADDRESS": "10.0.0.1:6379", "PATH": "/opt/x:/usr/bin:/bin"})

    result = made.run(f'#{"x" * 200_000}\necho "$0 $RAY_ADDRESS $PATH"; cat; exit 7', output=output, quiet=True)

    assert result.returncode == 7
    shell, address, path = output.getvalue().decode().split()
    assert (shell, address) == ("/bin/bash", "10.0.0.1:6379")
    assert path.endswith(":/opt/x:/usr/bin:/bin")


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "SKYRL_RUN_ID", "SKYRL_DATA"])
def test_variables_of_another_run_are_not_inherited(
    launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The caller's own Ray, and the variables of a run in which the caller itself runs, are not the command's."""
    monkeypatch.setenv(name, "of the caller")
    output = io.BytesIO()

    launcher(volumes=[]).run(f'echo "${{{name}-none}}"', output=output, quiet=True, check=True)

    assert "of the caller" not in output.getvalue().decode()
