"""The server of the page shows runs of every backend."""

from __future__ import annotations

from typing import Any

from tests.conftest import MakeLauncher
from tests.web.conftest import Server

CODE = """
from skyrl_modal import log_metrics
for step in range(4):
    log_metrics({"loss": step / 2}, step=step)
    print("step", step)
raise SystemExit(3)
"""


def test_run_is_shown(launcher: MakeLauncher, backend: str) -> None:
    """A run that has ended has its state, curve, output and diagnosis in the answers of the server."""
    run_id = launcher().run(f"cat > /tmp/p.py <<'END'\n{CODE}\nEND\npython3 /tmp/p.py", quiet=True).run_id
    server = Server()
    try:

        def summary() -> dict[str, Any]:
            while (found := server.get("/api/runs", search=run_id).json())["pending"]:
                pass
            return dict(found["runs"][0])

        found = summary()
        assert (found["state"], found["returncode"], found["backend"]) == ("failed", 3, backend)
        [curve] = server.get("/api/series", run=run_id, key="loss").json()["series"]
        assert (curve["x"], curve["y"]) == ([0, 1, 2, 3], [0.0, 0.5, 1.0, 1.5])
        lines = server.get(f"/api/runs/{run_id}/log").json()["lines"]
        assert [line["text"] for line in lines] == [f"step {step}" for step in range(4)]
        while (details := server.get(f"/api/runs/{run_id}").json())["diagnosis_pending"]:
            pass
        assert details["diagnosis"]["cause"]
        assert [each["last_step"] for each in details["attempts"]] == [3]
        assert server.get(f"/api/runs/{run_id}/checkpoints").json()["checkpoints"] == []
        assert server.get(f"/api/runs/{run_id}/rollouts").json()["total"] == 0
        assert summary()["step"] == 3
    finally:
        errors = server.stop()
    assert errors == ""
