"""Tests of a real Ray in a container of the loopback, and of the quickstart."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RaySpec
from tests.support.loopback import LoopbackModal

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.slow
@pytest.mark.ray
def test_ray_runs_when_the_command_starts(server: LoopbackModal, launcher: Callable[..., Launcher]) -> None:
    """The command connects to the run's Ray by $RAY_ADDRESS, and finds the declared resources."""
    output = io.BytesIO()
    script = "import ray; ray.init(logging_level='ERROR'); print(ray.cluster_resources()['CPU'])"

    result = launcher(ray=RaySpec(num_cpus=3)).run(
        f'echo "$RAY_ADDRESS"; python -c "{script}"', output=output, quiet=True
    )

    assert result.returncode == 0, output.getvalue().decode() + result.detail
    lines = output.getvalue().decode().splitlines()
    assert lines[0] == "127.0.0.1:6379"
    assert "3.0" in lines


@pytest.mark.slow
@pytest.mark.ray
def test_token_is_masked_and_not_stored(server: LoopbackModal, launcher: Callable[..., Launcher]) -> None:
    """Ray's token is in the command's environment, is masked in its output, and is in no file on the volume."""
    used, output = launcher(ray=RaySpec(num_cpus=1)), io.BytesIO()
    script = "import hashlib, os; print(hashlib.sha256(os.environ['RAY_AUTH_TOKEN'].encode()).hexdigest())"

    result = used.run(f'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN"; python -c "{script}"', output=output, quiet=True)

    assert result.returncode == 0, output.getvalue().decode() + result.detail
    first, digest = output.getvalue().decode().splitlines()
    assert first == "token ********"
    stored = [path.read_bytes() for path in server.volume(used.volumes[0].name).rglob("*") if path.is_file()]
    candidates = {text for content in stored for text in re.findall(rb"[0-9a-f]{64}", content)}
    assert digest.encode() in candidates  # the output itself is stored
    assert digest not in {hashlib.sha256(text).hexdigest() for text in candidates}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(290)
def test_quickstart(tmp_path: Path) -> None:
    """The quickstart trains on Modal, and a second run resumes from the checkpoint of the first."""
    with LoopbackModal(tmp_path, scaledown=1) as server:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "quickstart.py"), "--backend", "modal", "--steps", "20"],
            env={**os.environ, **server.env()},
            check=False,
            capture_output=True,
            text=True,
        )
        assert server.unimplemented == []

    assert done.returncode == 0, done.stdout + done.stderr
    assert "run 2: resumed from global_step_10, steps 11-20" in done.stdout
    [both] = re.findall(r"^both:  mean reward ([\d.]+) -> ([\d.]+)$", done.stdout, re.MULTILINE)
    assert float(both[1]) > float(both[0])
