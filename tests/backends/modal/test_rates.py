"""Tests of the workspace's rates: when they are requested, and what happens without them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skyrl_modal import Launcher
from skyrl_modal.backends.modal.rate_request import REQUEST_TIMEOUT, RateRequest
from skyrl_modal.backends.modal.rate_table import TABLE_DATE
from skyrl_modal.cli import main
from tests.support.loopback import LoopbackModal
from tests.support.loopback.modes import Mode

Make = Callable[..., Launcher]
MakeServer = Callable[..., LoopbackModal]
REQUEST = "WorkspaceBillingRates"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache folder without rates."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_rates_are_requested_once(server: LoopbackModal, launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """The first run requests the workspace's rates, shows the cost, and stores the rates in its job. Later runs and
    plans use the stored ones.
    """
    one = launcher(gpu="H100:2")
    assert TABLE_DATE in one.plan("true").cost.source
    assert REQUEST not in server.names()

    first = one.submit("true")
    first.wait(60)

    assert first.job.rate is not None
    assert first.job.rate.per_hour == pytest.approx(6.0, abs=0.01)
    assert first.job.rate.source.startswith("your workspace's rates of 20")
    launcher(gpu=None).run("true")
    assert "per hour, at most" in capfd.readouterr().err
    assert one.plan("true").cost.per_hour == pytest.approx(6.0, abs=0.01)
    assert server.names().count(REQUEST) == 1


def test_plan_with_check_requests_rates(server: LoopbackModal, launcher: Make) -> None:
    """A plan that asks the backend requests the rates too."""
    assert launcher(gpu="H200").plan("true", check=True).cost.per_hour == pytest.approx(4.0, abs=0.01)
    assert server.names().count(REQUEST) == 1


def test_declared_rate_is_used(server: LoopbackModal, launcher: Make) -> None:
    """A declared rate has precedence."""
    run = launcher(gpu="H100", rate=1.25).submit("true")
    run.wait(60)

    assert run.job.rate is not None
    assert run.job.rate.per_hour == 1.25


@pytest.mark.parametrize("kind", ["odd", "refused"])
def test_rates_that_cannot_be_used(make_server: MakeServer, launcher_of: Make, kind: str) -> None:
    """With other names, or without permission, the table is used, and the request is not repeated for some time."""
    server = make_server(mode=Mode(rates=kind))
    for _ in range(2):
        cost = launcher_of(gpu="H100").plan("true", check=True).cost
        assert cost.per_hour == pytest.approx(3.96, abs=0.01)
        assert TABLE_DATE in cost.source
        assert ("your workspace" in cost.source) == (kind == "odd")
    assert server.names().count(REQUEST) == 1


@pytest.fixture
def launcher_of(checkout: Path) -> Make:
    """Return a function that makes launchers after the test has started its control plane."""
    return lambda **fields: Launcher(**{"backend": "modal", "checkout": checkout, "ray": None, **fields})


def test_server_that_does_not_reply(make_server: MakeServer, launcher_of: Make) -> None:
    """A server that accepts the request and never replies delays one start by two seconds, and the next ones not."""
    server = make_server(mode=Mode(rates="silent"))
    used = launcher_of(gpu="H100")
    used.plan("true")
    begin = time.monotonic()
    request = RateRequest()
    assert request.result() is None
    assert time.monotonic() - begin < REQUEST_TIMEOUT + 8

    result = used.run("true", quiet=True)

    assert result.succeeded
    assert server.names().count(REQUEST) == 1


PLAN = """
import sys, time
from skyrl_modal.backends.modal.rate_request import RateRequest
begin = time.monotonic()
assert RateRequest().result() is None
assert time.monotonic() - begin < 10, time.monotonic() - begin
"""


@pytest.mark.parametrize("accepts", [True, False])
def test_server_that_is_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepts: bool) -> None:
    """A server that accepts connections and never answers, or that refuses them, delays a start by two seconds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("MODAL_SERVER_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("MODAL_TOKEN_ID", "ak-1")
        monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-1")
        if not accepts:
            listener.close()
        subprocess.run([sys.executable, "-c", PLAN], check=True, timeout=60)


def test_without_token(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a token, the plan on the command line states that the table is used."""
    monkeypatch.setattr(sys, "argv", ["skyrl-modal", "plan", "--gpu", "L4", "--checkout", str(checkout), "true"])
    with pytest.raises(SystemExit, match="0"):
        main()

    printed = capsys.readouterr().out
    assert "$0.81 per hour, at most $0.81" in printed
    assert f"public rates of {TABLE_DATE}" in printed
