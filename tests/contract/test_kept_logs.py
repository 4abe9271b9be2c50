"""Logs of SkyRL that end with the container are kept in the run's folder, on every backend."""

from __future__ import annotations

import pytest

from skyrl_modal import Run
from tests.conftest import MakeLauncher


def test_logs_of_skyrl_are_kept(launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt keeps its own logs, without the values of secrets; other files in /tmp are not kept."""
    monkeypatch.setenv("API_KEY", "a-secret-value")
    command = (
        "mkdir -p /tmp/skyrl-logs; echo other > /tmp/other.log; "
        'echo "attempt $SKYRL_ATTEMPT: $API_KEY is refused" >> /tmp/skyrl-logs/infra-1.log; exit 3'
    )

    result = launcher(secrets=["API_KEY"], retries=1).run(command, quiet=True)

    logs = Run.attach(result.run_id).kept_logs(pattern="skyrl-logs/*")
    assert [(log.rank, log.attempt, log.start, log.name) for log in logs] == [
        (0, 1, 1, "skyrl-logs/infra-1.log"),
        (0, 2, 1, "skyrl-logs/infra-1.log"),
    ]
    contents = [log.read() for log in logs]
    assert contents == [b"attempt 1: ******** is refused\n", b"attempt 2: ******** is refused\n"]
    assert [log.size for log in logs] == [len(content) for content in contents]
    text = "\n".join(Run.attach(result.run_id).logs(rank=0))
    assert "==> 2/skyrl-logs/infra-1.log <==\nattempt 2: ******** is refused" in text
