"""Tests with different minor versions of Python in client and container: nothing of a run is pickled."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from skyrl_modal import Launcher
from tests.support.loopback import LoopbackModal
from tests.support.pythons import find_python

OWN_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("minor", sorted({"3.11", "3.12", "3.13"} - {OWN_VERSION}))
def test_container_with_another_python(
    make_server: Callable[..., LoopbackModal], launcher: Callable[..., Launcher], tmp_path: Path, minor: str
) -> None:
    """A run works if the container's Python has another minor version, and only Modal's client is installed there."""
    python = find_python(minor)
    if python is None:
        pytest.skip(f"there is no Python {minor} on this machine")
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True, capture_output=True)
    container_python = tmp_path / "venv" / "bin" / "python"
    requirement = f"modal=={version('modal')}"
    subprocess.run([container_python, "-m", "pip", "install", "-q", requirement], check=True, capture_output=True)
    make_server(python=str(container_python))
    output = io.BytesIO()
    command = "python -c 'import sys; print(sys.version_info[:2])'; echo ä; exit 7"

    result = launcher().run(command, output=output, quiet=True)

    assert result.returncode == 7
    assert output.getvalue().decode() == f"({minor.replace('.', ', ')})\nä\n"
