"""A real Ray in a container of the loopback, and the quickstart through it."""

from __future__ import annotations

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
def test_the_command_finds_ray_up(server: LoopbackModal, launcher: Callable[..., Launcher]) -> None:
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
@pytest.mark.timeout(290)
def test_the_quickstart_on_modal(tmp_path: Path) -> None:
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
