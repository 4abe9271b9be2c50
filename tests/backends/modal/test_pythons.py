"""A client and a container that run different minor versions of Python: nothing of a run is pickled."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from skyrl_modal import Launcher
from tests.support.loopback import LoopbackModal

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def found(minor: str) -> str | None:
    """A Python of this minor version: on PATH, or pyenv's."""
    candidates = [shutil.which(f"python{minor}")]
    candidates += [str(path) for path in Path.home().glob(f".pyenv/versions/{minor}.*/bin/python{minor}")]
    for candidate in filter(None, candidates):
        told = subprocess.run([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                              check=False, capture_output=True, text=True)  # fmt: skip
        if told.stdout.strip() == minor:
            return candidate
    return None


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.parametrize("minor", sorted({"3.11", "3.12", "3.13"} - {HERE}))
def test_the_container_may_have_another_python(
    make_server: Callable[..., LoopbackModal], launcher: Callable[..., Launcher], tmp_path: Path, minor: str
) -> None:
    python = found(minor)
    if python is None:
        pytest.skip(f"there is no Python {minor} on this machine")
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True, capture_output=True)
    inside = tmp_path / "venv" / "bin" / "python"
    # The image's side: Modal's client, and nothing of ours.
    wanted = [f"modal=={version('modal')}"]
    subprocess.run([inside, "-m", "pip", "install", "-q", *wanted], check=True, capture_output=True)
    make_server(python=str(inside))
    output = io.BytesIO()
    command = "python -c 'import sys; print(sys.version_info[:2])'; echo ä; exit 7"

    result = launcher().run(command, output=output, quiet=True)

    assert result.returncode == 7
    assert output.getvalue().decode() == f"({minor.replace('.', ', ')})\nä\n"
