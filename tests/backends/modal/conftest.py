"""Fixtures for tests of the Modal backend, with the real client and the loopback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, RunResult
from tests.support.archives import code, new_container, store
from tests.support.loopback import LoopbackModal

__all__ = ["code", "new_container", "store"]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., LoopbackModal]]:
    """Return a function that starts control planes with options. The client of this process uses the last one."""
    servers: list[tuple[LoopbackModal, Any]] = []

    def make(**options: Any) -> LoopbackModal:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        server = LoopbackModal(folder, **{"client_timeout": 3, "scaledown": 1, **options})
        activation = server.activate()
        activation.__enter__()
        servers.append((server, activation))
        return server

    yield make
    for server, activation in reversed(servers):
        activation.__exit__(None, None, None)
        server.close()
        assert server.unimplemented == []
        assert server.errors == []


@pytest.fixture
def server(make_server: Callable[..., LoopbackModal]) -> LoopbackModal:
    """Return a control plane with default options."""
    return make_server()


@pytest.fixture
def backend(server: LoopbackModal) -> str:
    """Return the name of the backend, after starting a control plane."""
    return "modal"


class ActingOutput(io.BytesIO):
    """A receiver of output that calls a function once, when the output contains a text."""

    def __init__(self, text: str, act: Callable[[], object]) -> None:
        super().__init__()
        self._text, self._act = text.encode(), act
        self._has_acted = False

    def write(self, data: Any) -> int:
        """Append data, and call the function if the text has arrived."""
        written = super().write(data)
        if not self._has_acted and self._text in self.getvalue():
            self._has_acted = True
            self._act()
        return written


def requests_for_run(server: LoopbackModal) -> list[str]:
    """Return the names of the requests except for those for rates, which are made while a run is planned."""
    of_rates = {"ClientHello", "AuthTokenGet", "WorkspaceNameLookup", "WorkspaceBillingRates"}
    return [name for name in server.names() if name not in of_rates]


def stored_output(launcher: Launcher, result: RunResult, folder: Path) -> bytes:
    """Return a run's output.log, after downloading it to a folder."""
    path = f"/root/data/.skyrl_modal/runs/{result.run_id}/output.log"
    return launcher.pull(path, folder / "output.log").read_bytes()


class Script:
    """A Python script in a separate process, which is killed at the end of the test."""

    def __init__(self, code: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def wait_for(self, text: str, stream: str = "stdout") -> list[str]:
        """Read a stream until a line contains a text, and return the lines."""
        pipe, lines = getattr(self.process, stream), []
        for line in pipe:
            lines.append(line)
            if text in line:
                return lines
        pytest.fail(f"the script exited before it printed {text!r}: {lines}, {self.process.communicate()}")

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        """Wait for the exit, and return the exit status, standard output and standard error."""
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Return a function that starts a script."""
    started: list[Script] = []

    def start(code: str, *arguments: str, **options: Any) -> Script:
        started.append(Script(code, *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
