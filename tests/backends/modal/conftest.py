"""The Modal backend on the real client, against the loopback: what only this backend can show."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, VolumeSpec
from tests.support.loopback import LoopbackModal


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., LoopbackModal]]:
    """Makes control planes with graces and patience as a test wants them; this process's client uses the last."""
    servers: list[tuple[LoopbackModal, Any]] = []

    def make(**options: Any) -> LoopbackModal:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        server = LoopbackModal(folder, **{"client_timeout": 3, "scaledown": 1, **options})
        here = server.activate()
        here.__enter__()
        servers.append((server, here))
        return server

    yield make
    for server, here in reversed(servers):
        here.__exit__(None, None, None)
        server.close()
        assert server.unimplemented == []
        assert server.errors == []


@pytest.fixture
def server(make_server: Callable[..., LoopbackModal]) -> LoopbackModal:
    """A control plane of the test's own."""
    return make_server()


@pytest.fixture
def volume() -> VolumeSpec:
    return VolumeSpec(name=f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def launcher(server: LoopbackModal, checkout: Path, volume: VolumeSpec) -> Callable[..., Launcher]:
    """Makes launchers on Modal: no GPU, no Ray, a volume of the test's own, unless said otherwise."""

    def make(**fields: Any) -> Launcher:
        return Launcher(
            **{"backend": "modal", "checkout": checkout, "volumes": [volume], "ray": None, "gpu": None, **fields}
        )

    return make


class Script:
    """A Python script in a process of its own, ended with the test."""

    def __init__(self, code: str, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def wait_for(self, text: str, stream: str = "stdout") -> list[str]:
        """Read a stream until a line has this in it; gives the lines until there."""
        pipe, lines = getattr(self.process, stream), []
        for line in pipe:
            lines.append(line)
            if text in line:
                return lines
        pytest.fail(f"the script ended before it said {text!r}: {lines}, {self.process.communicate()}")

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    started: list[Script] = []

    def start(code: str, *arguments: str, **options: Any) -> Script:
        started.append(Script(code, *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
