"""Ray's dashboard at ``run.url``: on this machine, and through a tunnel with a gate before it."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import re
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skyrl_modal import Launcher, RaySpec, Run, RunState, VolumeSpec
from tests.support.loopback import LoopbackModal

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(290)]


@pytest.fixture(scope="session")
def dashboard_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ``ray[default]`` has beyond ``ray``: in the tests' own environment it would slow every Ray."""
    folder = tmp_path_factory.mktemp("dashboard")
    wanted = [text.partition(";") for text in importlib.metadata.requires("ray") or []]
    packages = [name.strip() for name, _, when in wanted if re.fullmatch(r'\s*extra == "default"\s*', when)]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--only-binary=:all:"]
    done = subprocess.run(
        [*pip, "--target", str(folder), "--python-version", here, *packages, "pydantic>=2.13,<3"],
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


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request; the loopback's tunnels are without the TLS that Modal's have."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request("GET", parts._replace(scheme="", netloc="").geturl() or "/", headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def until_up(ask: Callable[[], tuple[int, dict[str, str], bytes]]) -> dict[str, str]:
    """Ray starts its dashboard some seconds after a driver can connect, and tells nobody."""
    deadline = time.monotonic() + 120
    while True:
        try:
            status, _, body = ask()
        except OSError:
            status = 0
        if status == 200:
            found: dict[str, str] = json.loads(body)
            return found
        assert time.monotonic() < deadline, f"the dashboard is not up: {status}"
        time.sleep(0.5)


def wait_until_running(run: Run) -> None:
    assert next(iter(run.logs(follow=True))) == "up"


def test_the_dashboard_is_at_the_runs_url(launcher: Launcher) -> None:
    run = launcher.submit("echo up; sleep 600")
    try:
        wait_until_running(run)
        url = Run.attach(run.id).url
        assert url is not None
        assert url == run.url
        if launcher.backend == "local":
            assert urllib.parse.urlsplit(url).hostname == "127.0.0.1"
            facts = until_up(lambda: get(f"{url}/api/version"))
        else:
            base, _, token = url.partition("?token=")
            assert base.startswith("https://")
            assert get(f"{base}api/version")[0] == 401
            assert get(f"{base}api/version?token={token[:-1]}x")[0] == 401
            status, headers, _ = get(f"{url}")
            assert (status, headers["location"]) == (303, "/")
            assert "HttpOnly" in headers["set-cookie"]
            cookie = headers["set-cookie"].partition(";")[0]
            facts = until_up(lambda: get(f"{base}api/version", Cookie=cookie))
        assert facts["ray_version"] == importlib.metadata.version("ray")
    finally:
        run.cancel()
    assert run.wait(60).state is RunState.CANCELLED
    assert run.url is None or "token" not in run.url
    with pytest.raises(ConnectionError):
        get(url)
