"""The JSON API on real runs and files."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from skyrl_modal import BucketSpec, Launcher, VolumeSpec
from skyrl_modal.formats.metrics_writer import MetricsFile
from skyrl_modal.protocol.run_folder import RunFolder
from skyrl_modal.protocol.state import RunState
from tests.web.conftest import Server

PROGRAM = """
import math, sys
from skyrl_modal import log_metrics
for step in range(5):
    log_metrics({"reward": step / 4, "timing/step": 2.0, "bad": math.nan, "<script>\\x1b[31m": 1.0}, step=step)
sys.stdout.buffer.write(b"\\x1b[31mred\\x1b[0m <script>alert(1)</script> \\xff \\x07\\n")
sys.stdout.buffer.write(b"x" * 10_000_000 + b"\\nlast")
sys.exit(3)
"""
AddRun = Callable[..., RunFolder]


def local_launcher(**options: Any) -> Launcher:
    """Return a launcher for this machine, without Ray and without a checkout."""
    volumes = [VolumeSpec(name="test-web"), BucketSpec(name="test-web", mount_path="/mnt/b", read_only=True)]
    return Launcher(backend="local", mounts=[], ray=None, volumes=volumes, **options)


@pytest.fixture(scope="module")
def failed(isolated_user_folders: None) -> str:
    """Return the id of a run that has logged metrics, has printed hostile output, and has failed."""
    launcher = local_launcher(name="hostile", tags=["failing"])
    return launcher.run([sys.executable, "-c", PROGRAM], quiet=True, output=lambda data: None).run_id


def test_run_that_failed(server: Server, failed: str) -> None:
    """A run has its plan, attempts, cost, and the diagnosis of its failure."""
    found = server.get(f"/api/runs/{failed}").json()
    while found["diagnosis_pending"]:
        found = server.get(f"/api/runs/{failed}").json()

    assert (found["summary"]["state"], found["summary"]["returncode"], found["summary"]["step"]) == ("failed", 3, 4)
    assert [(item["attempt"], item["returncode"], item["last_step"]) for item in found["attempts"]] == [(1, 3, 4)]
    assert found["diagnosis"]["cause"]
    assert found["cost"]["total"] == 0
    titles = [section["title"] for section in found["plan"]]
    assert {"Command", "Hardware", "Data", "Limits"} <= set(titles)
    data = next(section["rows"] for section in found["plan"] if section["title"] == "Data")
    assert data[:2] == [["/root/data", "volume test-web"], ["/mnt/b", "bucket test-web, read only"]]
    assert all(len(row) == 2 for section in found["plan"] for row in section["rows"])


def test_metrics(server: Server, failed: str) -> None:
    """Keys, last values, curves and times by phase are those that were logged. What is not finite is null."""
    keys = server.get(f"/api/runs/{failed}/keys").json()
    assert keys["keys"] == ["<script>\x1b[31m", "bad", "reward", "timing/step"]
    assert (keys["last"]["reward"], keys["last"]["bad"], keys["steps"]) == (1.0, None, [0, 4])

    [reward, bad] = server.get("/api/series", run=failed, key=["reward", "bad"]).json()["series"]
    assert (reward["x"], reward["y"], reward["count"]) == ([0, 1, 2, 3, 4], [0, 0.25, 0.5, 0.75, 1], 5)
    assert bad["y"] == [None] * 5
    [by_time] = server.get("/api/series", run=failed, key="reward", x="time").json()["series"]
    assert by_time["x"] == sorted(by_time["x"])
    assert by_time["x"][0] > 1e9

    phases = server.get(f"/api/runs/{failed}/phases").json()
    assert phases == {"phases": ["timing/step"], "steps": [0, 1, 2, 3, 4], "values": {"timing/step": [2.0] * 5}}


def test_log(server: Server, failed: str) -> None:
    """Lines have no control characters, long ones are cut, and earlier ones and matches are found by number."""
    found = server.get(f"/api/runs/{failed}/log").json()

    assert [line["n"] for line in found["lines"]] == [1, 2, 3]
    assert found["lines"][0]["text"] == "red <script>alert(1)</script> \ufffd \\x07"
    assert (len(found["lines"][1]["text"]), found["lines"][1]["cut"]) == (4000, True)
    assert server.get(f"/api/runs/{failed}/log", before=2).json()["last"] == 1
    matches = server.get(f"/api/runs/{failed}/log", search="LAST").json()
    assert ([line["text"] for line in matches["lines"]], matches["matches"]) == (["last"], 1)


def test_folders_without_content(server: Server, failed: str) -> None:
    """A run without checkpoints, rollouts and kept logs of a rank is answered as such."""
    assert server.get(f"/api/runs/{failed}/checkpoints").json()["checkpoints"] == []
    assert server.get(f"/api/runs/{failed}/rollouts").json()["total"] == 0
    assert server.get(f"/api/runs/{failed}/log", rank=5).status == 404


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/runs", {"sort": "x"}),
        ("/api/runs", {"since": "soon"}),
        ("/api/runs", {"limit": "-1"}),
        ("/api/runs", {"offset": "9" * 30}),
        ("/api/series", {"run": "RUN", "key": "a", "x": "other"}),
        ("/api/series", {"run": "RUN", "key": "a", "from": "nan"}),
        ("/api/series", {"run": "RUN", "key": [f"k{number}" for number in range(500)]}),
        ("/api/runs/RUN/log", {"before": "²"}),
        ("/api/runs/RUN/rollouts", {"order": "best"}),
    ],
)
def test_wrong_parameter_is_named(server: Server, failed: str, path: str, query: dict[str, Any]) -> None:
    """A parameter with a wrong value is an error that names it."""
    values = {name: failed if value == "RUN" else value for name, value in query.items()}

    answer = server.get(path.replace("RUN", failed), **values)

    assert answer.status == 400
    assert any(name in answer.json()["error"]["message"] for name in query)


def test_unknown_run(server: Server) -> None:
    """An id that no run has is an error with the id."""
    for path in ("/api/runs/20200101-000000-abcdef", "/api/series?run=20200101-000000-abcdef&key=a"):
        answer = server.get(path)
        assert answer.status == 404
        assert "20200101-000000-abcdef" in answer.json()["error"]["message"]


def list_runs(server: Server, **query: Any) -> dict[str, Any]:
    """Return the list when all runs were looked at; by default, of those with the tag ``list``."""
    while (found := server.get("/api/runs", **{"tag": "list", **query}).json())["pending"]:
        pass
    return dict(found)


def test_list(server: Server, add_run: AddRun) -> None:
    """Runs are found by text, state, tag, script and date, sorted, and divided into pages."""
    add_run("20250101-000000-aaaaaa", command="bash one.sh", tags=("list", "x"), name="First")
    add_run("20250102-000000-bbbbbb", command="bash two.sh lr=1", tags=("list",), state=RunState.FAILED)
    add_run("20250103-000000-cccccc", command="bash one.sh", tags=("list",), name="second")

    def ids(**query: Any) -> list[str]:
        return [run["run_id"][-6:] for run in list_runs(server, **query)["runs"]]

    assert ids() == ["cccccc", "bbbbbb", "aaaaaa"]
    assert ids(search="LR=1") == ids(state="failed") == ids(script="two.sh") == ["bbbbbb"]
    assert ids(tag=["list", "x"]) == ids(search="first") == ["aaaaaa"]
    assert ids(since="2025-01-02") == ["cccccc", "bbbbbb"]
    assert ids(until="2025-01-02") == ["bbbbbb", "aaaaaa"]
    assert ids(sort="name", order="asc") == ["aaaaaa", "cccccc", "bbbbbb"]
    assert ids(limit=1, offset=1) == ["bbbbbb"]
    found = list_runs(server, limit=1)
    assert {"one.sh", "two.sh"} <= set(found["scripts"])
    assert {"list", "x"} <= set(found["tags"])
    assert found["total"] >= 3


def test_backend_that_cannot_be_reached(server: Server, add_run: AddRun) -> None:
    """A run of a backend that is not installed is listed with the reason, which is also the answer about its output."""
    run_id = "20250104-000000-dddddd"
    add_run(run_id, backend="nowhere")

    found = list_runs(server, tag=[], search="dddddd")

    assert found["runs"][0]["state"] == "unknown"
    assert "nowhere" in [each["backend"] for each in found["unavailable"]]
    assert server.get(f"/api/runs/{run_id}").json()["summary"]["state"] == "unknown"
    answer = server.get(f"/api/runs/{run_id}/log")
    assert answer.status == 503
    assert "nowhere" in answer.json()["error"]["message"]


def test_files_are_read_incrementally(server: Server, add_run: AddRun) -> None:
    """Rows that are added later appear, and those of a resumed attempt replace the steps that it trains again."""
    run_id = "20250105-000000-eeeeee"
    folder = add_run(run_id)
    file = MetricsFile(str(folder.path), attempt=1, started_at=1.0, rank=0)
    for step in range(3000):
        file.append("tracking", step, {"a": math.sin(step), "b": float(step)})

    def curve(**query: Any) -> dict[str, Any]:
        [found] = server.get("/api/series", run=run_id, key="a", points=100, **query).json()["series"]
        return dict(found)

    first = curve()
    assert (first["count"], first["x"][-1]) == (3000, 2999)
    assert len(first["x"]) <= 100
    assert max(first["high"]) == max(math.sin(step) for step in range(3000))

    second = MetricsFile(str(folder.path), attempt=2, started_at=2.0, rank=0)
    second.append("tracking", 1000, {"a": 7.0, "b": 7.0})
    while (now := curve())["count"] != 1001:
        assert now["count"] == 3000
    assert (now["x"][-1], now["y"][-1]) == (1000, 7.0)
    assert len(curve(**{"from": 500, "to": 510})["x"]) == 13


def test_live_run(server: Server) -> None:
    """A client that follows a run receives its steps, its lines, the list and its end as they happen."""
    code = (
        "import time; from skyrl_modal import log_metrics\n"
        "for step in range(10_000):\n"
        "    log_metrics({'reward': step / 2}, step=step); print('step', step, flush=True)\n"
        "    time.sleep(0.05)\n"
    )
    run = local_launcher().submit([sys.executable, "-c", code])
    seen: dict[str, list[Any]] = {"run": [], "metrics": [], "log": [], "runs": []}
    try:
        with server.events(run.id) as events:
            for name, data in events:
                seen[name].append(data)
                if len(seen["metrics"]) == 3:
                    run.cancel()
                if seen["run"] and seen["run"][-1]["state"] == "cancelled":
                    break
    finally:
        run.cancel(now=True)
        run.wait()
    rows = [row for data in seen["metrics"] for row in data["rows"]]
    steps = [row["step"] for row in rows]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert all(row["values"] == {"reward": row["step"] / 2} for row in rows)
    lines = [line for data in seen["log"] for line in data["lines"]]
    assert [line["text"] for line in lines if line["n"] == lines[0]["n"] + 1] == [f"step {lines[0]['n']}"]
    assert {run_data["run_id"] for run_data in seen["run"]} == {run.id}


def test_list_changes(server: Server, add_run: AddRun) -> None:
    """A client is notified when a run is added."""
    with server.events() as events:
        timer = threading.Timer(0.1, add_run, ["20250106-000000-ffffff"])
        timer.start()
        assert next(events) == ("runs", {})
        timer.join()
    assert list_runs(server, tag=[], search="20250106")["total"] == 1


def test_nothing_is_changed_without_permission(server: Server, failed: str) -> None:
    """Without --allow-actions, runs cannot be cancelled, and the page knows it."""
    answer = server.get(f"/api/runs/{failed}/cancel", method="POST", headers={"X-Skyrl-Modal": "1"})

    assert answer.status == 403
    assert "--allow-actions" in answer.json()["error"]["remedy"]
    info = server.get("/api/info").json()
    assert (info["allow_actions"], bool(info["read_only_reason"])) == (False, True)
    for method in ("POST", "PUT", "DELETE"):
        assert server.get("/api/runs", method=method).status == 404


def test_cancel() -> None:
    """With --allow-actions, a request of the page stops a run; one without the page's header does not."""
    server = Server("--allow-actions")
    run = local_launcher().submit("sleep 600")
    try:
        assert server.get(f"/api/runs/{run.id}/cancel", method="POST").status == 403
        assert server.get(f"/api/runs/{run.id}/cancel", headers={"X-Skyrl-Modal": "1"}).status == 404
        answer = server.get(f"/api/runs/{run.id}/cancel", method="POST", headers={"X-Skyrl-Modal": "1"})
        assert answer.status == 202
        assert run.wait().state is RunState.CANCELLED
    finally:
        run.cancel(now=True)
        assert server.stop() == ""


def test_message_without_the_extra() -> None:
    """Without starlette, the command names the package and the extra to install."""
    code = (
        "import sys; sys.modules['starlette'] = None; sys.argv = ['skyrl-modal', 'ui']\n"
        "from skyrl_modal.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 125
    assert "pip install 'skyrl-modal[ui]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_port_in_use(server: Server) -> None:
    """A port that another program uses is an error that names the option."""
    command = [sys.executable, "-m", "skyrl_modal", "ui", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 125
    assert f"--port {server.port}" in done.stderr
    assert done.stdout == ""
