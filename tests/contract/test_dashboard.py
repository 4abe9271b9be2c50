"""Tests of Ray's dashboard, which requires the run's token: on this machine, and through a tunnel."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import re
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RaySpec, Run, RunState, VolumeSpec
from tests.support.loopback import LoopbackModal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(290)]

#: Seconds until the dashboard answers. Ray starts it after a driver can connect, and does not report it.
DASHBOARD_TIMEOUT = 120


@pytest.fixture(scope="session")
def dashboard_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the packages of ``ray[default]`` that ``ray`` lacks.

    In the environment of the tests they would slow down every start of Ray.
    """
    folder = tmp_path_factory.mktemp("dashboard")
    requirements = [text.partition(";") for text in importlib.metadata.requires("ray") or []]
    packages = [name.strip() for name, _, when in requirements if re.fullmatch(r'\s*extra == "default"\s*', when)]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary=:all:"]
    done = subprocess.run(
        [*pip, "--target", str(folder), "--python-version", version, *packages, "pydantic>=2.13,<3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=["local", "modal"])
def launcher(
    request: pytest.FixtureRequest,
    dashboard_packages: Path,
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Launcher]:
    """Yield a launcher with the dashboard, on each backend."""
    made = Launcher(
        backend=request.param,
        checkout=checkout,
        gpu=None,
        volumes=[VolumeSpec(name=f"dashboard-{request.param}")],
        ray=RaySpec(num_cpus=1, dashboard=True),
    )
    if request.param == "local":
        monkeypatch.setenv("PYTHONPATH", str(dashboard_packages))
        yield made
        return
    path = f"/root:/pkg:{dashboard_packages}"
    with LoopbackModal(tmp_path, container_env={"PYTHONPATH": path}, visible=[dashboard_packages]) as server:
        with server.activate():
            yield made
        assert server.unimplemented == []


def get(url: str, token: str | None) -> tuple[int, bytes]:
    """Send one request, and return status and body. The loopback's tunnels have no TLS, unlike Modal's."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        connection.request("GET", parts._replace(scheme="", netloc="").geturl() or "/", headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def get_when_ready(url: str, token: str) -> bytes:
    """Repeat a request until the dashboard answers it, and return the body."""
    deadline = time.monotonic() + DASHBOARD_TIMEOUT
    while True:
        try:
            status, body = get(url, token)
        except OSError as error:
            status, body = 0, str(error).encode()
        if status == 200:
            return body
        assert time.monotonic() < deadline, f"the dashboard does not answer: {status} {body!r}"
        time.sleep(0.5)


def test_dashboard_requires_the_token(launcher: Launcher) -> None:
    """The dashboard at the run's URL answers with the run's token, and refuses requests with another one or none."""
    run = launcher.submit("echo up; sleep 600")
    try:
        assert next(iter(run.logs(follow=True))) == "up"
        attached = Run.attach(run.id)
        url, token = attached.url, attached.dashboard_token
        assert url is not None
        assert token is not None
        assert (url, token) == (run.url, run.dashboard_token)
        assert token not in url
        base = url.rstrip("/")

        nodes = json.loads(get_when_ready(f"{base}/nodes?view=summary", token))
        jobs = json.loads(get_when_ready(f"{base}/api/jobs/", token))

        assert [node["raylet"]["state"] for node in nodes["data"]["summary"]] == ["ALIVE"]
        assert isinstance(jobs, list)
        for path in ("/nodes?view=summary", "/api/jobs/"):
            assert get(f"{base}{path}", None)[0] == 401
            assert get(f"{base}{path}", "0" * len(token))[0] == 403
    finally:
        run.cancel()
    assert run.wait(60).state is RunState.CANCELLED
    with pytest.raises(ConnectionError):
        get(base, token)


def test_token_is_not_in_records(launcher: Launcher, tmp_path: Path) -> None:
    """The token is in no file of the run's folder, also if the command prints its environment."""
    run = launcher.submit('test -n "$RAY_AUTH_TOKEN" && env')
    result = run.wait()

    assert result.succeeded, result.detail
    token = run.dashboard_token
    assert token is not None
    folder = launcher.pull(f"/root/data/.skyrl_modal/runs/{run.id}", tmp_path / "record")
    assert [path for path in folder.rglob("*") if path.is_file() and token.encode() in path.read_bytes()] == []
