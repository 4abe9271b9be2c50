"""Fixtures for the tests of the examples."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def checkout() -> Path:
    """Return a SkyRL checkout that the quickstart makes from the package index, once for the session."""
    script = "import quickstart; print(quickstart.published_checkout())"
    done = subprocess.run([sys.executable, "-c", script], cwd=EXAMPLES, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """Start a Ray head on a free port, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Not in pytest's folder: Ray creates sockets here, whose paths are limited to 107 bytes.
    folder = tempfile.mkdtemp(prefix="skyrl-ray-")
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    ray += [f"--temp-dir={folder}", "--include-dashboard=false", "--disable-usage-stats", "--num-cpus=2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    head = subprocess.Popen(ray, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert head.stdout is not None
        lines = []
        for line in head.stdout:
            lines.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError("Ray did not start:\n" + "".join(lines))
        yield f"127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        head.communicate()
        shutil.rmtree(folder)


@pytest.fixture
def small_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout that the notebook finds by $SKYRL_REPO_ROOT."""
    root = tmp_path / "SkyRL"
    (root / "skyrl-gym").mkdir(parents=True)
    (root / "skyrl-gym" / "pyproject.toml").write_text("")
    monkeypatch.setenv("SKYRL_REPO_ROOT", str(root))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return root
