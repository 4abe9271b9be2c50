"""Fixtures of the checks of what is recorded about Modal's servers, on Modal or on the loopback, with a report."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import modal
import pytest

from tests.support.loopback import LoopbackModal
from tests.support.loopback.fixtures import JOBS, jobs

__all__ = ["JOBS", "jobs"]

REPORT = pytest.StashKey[list[str]]()


#: Each statement has a test of its own on the loopback (docs/modal-assumptions.md). These show that the live tests run.
ON_LOOPBACK = pytest.param("loopback", marks=pytest.mark.slow)


@pytest.fixture(params=[ON_LOOPBACK, pytest.param("live", marks=pytest.mark.live)])
def account(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Connect this process and its children to the loopback, or leave it connected to the user's account."""
    if request.param == "live":
        yield "live"
        return
    with LoopbackModal(tmp_path, client_timeout=3, stop_grace=5, preempt_grace=5, cancel_grace=5) as server:
        before = dict(os.environ)
        with server.activate():
            os.environ.update(server.env())
            yield "loopback"
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def running(jobs: ModuleType, account: str) -> Callable[..., Any]:
    """Return a context manager that runs an app with one function of loopback_jobs."""

    @contextlib.contextmanager
    def run(name: str, *, detach: bool = False, **options: Any) -> Iterator[Any]:
        app = modal.App("skyrl-modal-check")
        options.setdefault("image", modal.Image.debian_slim(python_version=f"3.{sys.version_info.minor}"))
        options.setdefault("timeout", 900)
        function = app.function(**options)(getattr(jobs, name))
        with app.run(detach=detach):
            yield function

    return run


@pytest.fixture
def volume(account: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the name of a new volume, and the options that mount it at /data. It is deleted afterwards."""
    name = f"skyrl-modal-check-{uuid.uuid4().hex[:8]}"
    yield name, {"volumes": {"/data": modal.Volume.from_name(name, create_if_missing=True)}}
    subprocess.run([sys.executable, "-m", "modal", "volume", "delete", "--yes", name], check=False, capture_output=True)


@pytest.fixture
def record(request: pytest.FixtureRequest, account: str) -> Callable[[str, object], None]:
    """Return a function that adds a statement with its measured value to the report."""
    lines = request.config.stash.setdefault(REPORT, [])

    def add(statement: str, value: object) -> None:
        lines.append(f"| {account} | {statement} | `{value}` |")

    return add


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the report, which can be pasted into an issue. It contains no names of the account."""
    lines = config.stash.get(REPORT, [])
    if lines:
        terminalreporter.section(f"behaviour of Modal's servers (client {modal.__version__})")
        for line in ["| where | statement | measured |", "|---|---|---|", *lines]:
            terminalreporter.write_line(line)
