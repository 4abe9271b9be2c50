"""The hook with SkyRL's real `Tracking`, in a task of Ray below `uv run --isolated`: run by ``nox -s skyrl``.

It downloads about 500 MB of packages and is therefore no part of the other sessions. ``SKYRL_SOURCES`` is a folder with
``skyrl/`` and ``skyrl-gym/``, and ``UV_FIND_LINKS`` may have a folder with the wheel of torch for the CPU.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Run, VolumeSpec
from tests.formats.hook_process import HOOK, hook_environment, recorded_rows

STEPS = 100
PROJECT = """
[project]
name = "skyrl-tracking"
version = "0"
requires-python = ">=3.11"
dependencies = [
  "ray=={ray}", "torch=={torch}", "loguru", "omegaconf", "pyyaml", "wandb", "tensorboard", "tensorboardX", "pandas",
  "requests", "func-timeout",
]

[tool.uv]
package = false
"""
DRIVER = """
import json, os, sys
import ray

@ray.remote
def skyrl_entrypoint(backend, steps):
    sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "skyrl-gym")]
    from skyrl.train.utils.tracking import Tracking

    tracker = Tracking("project", "name", backend=backend, config={"epochs": 1})
    for step in range(1, steps + 1):
        values = {"loss/a": step / 7, "reward/b": step * 1e-9, "trainer/global_step": step}
        assert tracker.log(values, step=step, commit=True) is None
    tracker.finish()
    return [sys.executable, os.environ.get("PYTHONPATH")]

ray.init()
print("RESULT", json.dumps(ray.get(skyrl_entrypoint.remote(sys.argv[1], int(sys.argv[2])))))
"""
#: A program with the real class, without Ray. What it prints does not depend on the time.
PLAIN = f"""
import os, sys
sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "skyrl-gym")]
from loguru import logger
logger.remove()
logger.add(sys.stdout, format="{{message}}")
from skyrl.train.utils.tracking import Tracking
tracker = Tracking("project", "name", backend=sys.argv[1], config={{"epochs": 1}})
for step in range(1, {STEPS + 1}):
    print(tracker.log({{"loss/a": step / 7}}, step=step, commit=True))
try:
    tracker.log()
except TypeError as error:
    print(error)
tracker.finish()
"""

#: A program that uses the real packages without SkyRL's tracker.
DIRECT = """
import os, sys, wandb
from torch.utils.tensorboard import SummaryWriter
from tensorboardX import SummaryWriter as Other
import torch
run = wandb.init(project="project", name="name")
for step in range(3):
    wandb.log({"w/loss": step / 7, "w/table": wandb.Table(columns=["a"]), "w/nested": {"x": 1}})
wandb.log({"w/part": 1.0}, commit=False)
run.log({"w/rest": torch.tensor(0.1)})
run.log({"w/step": 5.0}, step=20)
wandb.finish()
writer = SummaryWriter(os.environ["TENSORBOARD_DIR"])
writer.add_scalar("t/loss", torch.tensor(0.5), 2)
writer.add_scalars("t/main", {"x": 1.0, "y": 2.0}, 3)
writer.add_histogram("t/histogram", torch.zeros(10), 3)
Other(os.environ["TENSORBOARD_DIR"] + "X").add_scalar("x/loss", 0.25, global_step=4)
print("done")
"""


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout with SkyRL's own modules, and a project with the packages that its tracker needs."""
    sources, root = Path(os.environ["SKYRL_SOURCES"]), tmp_path_factory.mktemp("checkout") / "SkyRL"
    for name in ("skyrl", "skyrl-gym"):
        shutil.copytree(sources / name, root / name)
    torch = os.environ.get("SKYRL_TORCH", "2.13.0")
    (root / "pyproject.toml").write_text(PROJECT.format(ray=version("ray"), torch=torch))
    (root / "driver.py").write_text(DRIVER)
    return root


@pytest.fixture(autouse=True)
def tracker_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let W&B write files only, and uv use this Python, which is also Ray's."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("UV_PYTHON", getattr(sys, "_base_executable", sys.executable))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tracker", ["console", "wandb", "tensorboard"])
def test_every_step_is_recorded(checkout: Path, tracker: str) -> None:
    """Each step has a row with exact values, once, whatever the tracker."""
    volume = VolumeSpec(name=f"real-tracking-{tracker}")
    launcher = Launcher(backend="local", checkout=checkout, volumes=[volume], gpu=None, timeout=900)
    output = io.BytesIO()

    result = launcher.run(f"uv run --isolated python driver.py {tracker} {STEPS}", output=output)

    text = output.getvalue().decode(errors="replace")
    assert result.returncode == 0, text[-5000:]
    metrics = Run.attach(result.run_id).metrics()
    assert [{key: value for key, value in row.items() if key != "time"} for row in metrics] == [
        {"step": step, "loss/a": step / 7, "reward/b": step * 1e-9, "trainer/global_step": float(step)}
        for step in range(1, STEPS + 1)
    ]
    assert metrics.skipped == 0
    folder = Path(result.log_path).parent / "metrics"
    sources = {
        json.loads(line)["source"]
        for path in folder.iterdir()
        for line in path.open()
        if line.startswith('{"table":0,"s') and '"keys"' in line
    }
    assert sources == {"tracker"}
    [executable, python_path] = json.loads(text.rpartition("RESULT ")[2].splitlines()[0])
    assert not executable.startswith(sys.prefix), "the task did not run below uv"
    assert str(HOOK) in python_path


def run_plain(checkout: Path, env: dict[str, str], *program: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the packages of the project, without Ray."""
    own = {"TENSORBOARD_DIR": str(checkout.parent / "tensorboard"), "WANDB_DIR": str(checkout.parent)}
    argv = [str(Path(sys.executable).parent / "uv"), "run", "--isolated", "python", "-c", *program]
    return subprocess.run(
        argv, env={**os.environ, **env, **own}, cwd=checkout, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tracker", ["console", "tensorboard"])
def test_planted_error_changes_nothing(checkout: Path, tmp_path: Path, tracker: str) -> None:
    """What the real class prints is the same with the hook, without it, and with a hook that fails."""
    copy = tmp_path / "skyrl_modal" / "formats"
    shutil.copytree(HOOK.parent, copy)
    path = copy / "metrics_writer.py"
    found, planted = "def to_step(value: object) -> int | None:", "def to_step(value):\n    1 / 0"
    path.write_text(path.read_text().replace(found, planted))
    plain = {**hook_environment(None), "PYTHONPATH": ""}
    (tmp_path / "run").mkdir()

    without = run_plain(checkout, plain, PLAIN, tracker)
    with_hook = run_plain(checkout, hook_environment(tmp_path / "run"), PLAIN, tracker)
    failing = run_plain(checkout, hook_environment(tmp_path, hook=copy / "hook"), PLAIN, tracker)

    assert without.returncode == 0, without.stderr[-3000:]
    assert without.stdout.count("None") == STEPS
    assert (with_hook.stdout, with_hook.returncode) == (without.stdout, 0)
    assert (failing.stdout, failing.returncode) == (without.stdout, 0)
    assert not (tmp_path / "metrics").exists()
    assert [row["loss/a"] for row in recorded_rows(tmp_path / "run")] == [step / 7 for step in range(1, STEPS + 1)]


@pytest.mark.timeout(1200)
def test_packages_without_the_tracker(checkout: Path, tmp_path: Path) -> None:
    """The real wandb, torch and tensorboardX are recorded where SkyRL's tracker is not used."""
    done = run_plain(checkout, hook_environment(tmp_path), DIRECT)

    assert "done" in done.stdout, done.stderr[-3000:]
    assert recorded_rows(tmp_path) == [
        {"step": 0, "w/loss": 0.0},
        {"step": 1, "w/loss": 1 / 7},
        {"step": 2, "w/loss": 2 / 7, "t/loss": 0.5},
        {"step": 3, "w/part": 1.0, "w/rest": 0.10000000149011612, "t/main/x": 1.0, "t/main/y": 2.0},
        {"step": 4, "x/loss": 0.25},
        {"step": 20, "w/step": 5.0},
    ]
