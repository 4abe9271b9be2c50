"""Measure coverage in processes that coverage.py does not reach by itself (``nox -s coverage``).

With ``patch = ["subprocess"]``, coverage.py measures every Python process that has its site packages and the variable
COVERAGE_PROCESS_CONFIG. Two kinds of processes have not: the supervisors of the local backend, which start with the
option ``-S``, and the containers of the loopback, which have a new environment and no access to the data file.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

CONFIG_VARIABLE = "COVERAGE_PROCESS_CONFIG"
#: Folder in a container for the data files.
CONTAINER_FOLDER = "/__coverage"


def _config() -> dict[str, Any]:
    # coverage.config.CoverageConfig.serialize, seen in coverage 7.17: JSON in base64.
    config: dict[str, Any] = json.loads(base64.b64decode(os.environ[CONFIG_VARIABLE]))
    return config


def is_measured() -> bool:
    """Return whether this process is measured."""
    return CONFIG_VARIABLE in os.environ


def container_variables() -> dict[str, str]:
    """Return the variables that make coverage.py measure a container's processes."""
    if not is_measured():
        return {}
    config = {**_config(), "data_file": f"{CONTAINER_FOLDER}/.coverage"}
    return {CONFIG_VARIABLE: base64.b64encode(json.dumps(config).encode()).decode()}


def collect(folder: Path) -> None:
    """Move the data files of a container next to those of this process."""
    if is_measured():
        for path in folder.glob(".coverage.*"):
            shutil.move(path, Path(_config()["data_file"]).parent)


def measure_local_supervisors(patch: pytest.MonkeyPatch) -> None:
    """Start the local supervisors of this process with their site packages, if this process is measured."""
    if not is_measured():
        return
    from skyrl_modal.backends.local.rank_process import RankStarter  # the loopback does not need the package

    supervisor_argv = RankStarter._supervisor_argv

    def with_site_packages(self: RankStarter, *arguments: Any) -> list[str]:
        # Another option in place of -S: `tests.support.processes.supervisors` relies on the positions.
        return ["-B" if argument == "-S" else argument for argument in supervisor_argv(self, *arguments)]

    patch.setattr(RankStarter, "_supervisor_argv", with_site_packages)
