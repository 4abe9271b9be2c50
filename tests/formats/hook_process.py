"""Runs programs as a run does: with the hook's folder in front of PYTHONPATH, and the variables of the run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import skyrl_modal
from skyrl_modal.formats.metrics_rows import FileReader, MergedRows, group_of_file

HOOK = Path(skyrl_modal.__file__).parent / "formats" / "hook"
#: SkyRL's class in short: the trackers that it uses, and its signature.
TRACKING = """
class Tracking:
    def __init__(self, logger=None):
        self.logger = logger
    def log(self, data, step, commit=False):
        "Log a step."
        if self.logger is not None:
            self.logger.log(data=data, step=step, commit=commit)
        return len(data)
"""
WANDB_RUN = """
class Run:
    def __init__(self):
        self.step = 0
    def log(self, data, step=None, commit=None, sync=None):
        self.step = (self.step if step is None else step) + (commit is not False)
        return None
"""
SUMMARY_WRITER = """
class SummaryWriter:
    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None):
        float(scalar_value)
    def add_scalars(self, main_tag, tag_scalar_dict, global_step=None, walltime=None):
        for tag, value in tag_scalar_dict.items():
            self.add_scalar(tag, value, global_step)
"""
MODULES = {
    "skyrl/train/utils/tracking.py": TRACKING,
    "skyrl_train/utils/tracking.py": TRACKING,
    "wandb/sdk/wandb_run.py": WANDB_RUN,
    "torch/utils/tensorboard/writer.py": SUMMARY_WRITER,
    "tensorboardX/writer.py": SUMMARY_WRITER,
}


def make_packages(folder: Path) -> Path:
    """Write small stand-ins for the packages that log metrics, and return their folder."""
    for name, text in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in Path(name).parents[:-1]:
            (folder / parent / "__init__.py").touch()
    return folder


def hook_environment(run_folder: Path | None, *paths: Path | str, hook: Path = HOOK, **more: str) -> dict[str, str]:
    """Return the variables of a process of a run; without a run's folder, only PYTHONPATH."""
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env["PYTHONPATH"] = os.pathsep.join(map(str, [hook, *paths]))
    if run_folder is not None:
        run = {"SKYRL_MODAL_RUN_FOLDER": str(run_folder), "SKYRL_MODAL_STARTED_AT": "1764243123.500"}
        env |= {**run, "SKYRL_ATTEMPT": "1", "NODE_RANK": "0"}
    return {**env, **more}


def run_python(
    code: str, env: Mapping[str, str], *options: str, python: str = sys.executable, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program and return its output."""
    return subprocess.run(
        [python, *options, "-c", code], env=dict(env), capture_output=True, text=True, timeout=60, check=False, **more
    )


def recorded_rows(run_folder: Path) -> list[dict[str, float]]:
    """Return the rows in a run's folder, without their times. No line may be damaged."""
    readers = []
    for path in sorted((run_folder / "metrics").glob("*")):
        reader = FileReader(group_of_file(path.name) or (0, 0))
        reader.feed(path.read_bytes())
        assert reader.skipped == 0
        readers.append(reader)
    return [{key: value for key, value in row.items() if key != "time"} for row in MergedRows(readers)]
