"""The export of runs as one HTML file."""

from __future__ import annotations

import base64
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal.formats.metrics_writer import MetricsFile
from skyrl_modal.protocol.run_folder import RunFolder

#: It has the form of a Hugging Face token.
TOKEN = "hf_" + base64.b64encode(random.Random(1).randbytes(60)).decode().replace("+", "").replace("/", "")[:34]
RUN_ID = "20250301-000000-aaaaaa"


def export(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "skyrl_modal", "export", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def data_of(text: str) -> dict[str, Any]:
    """Return the answers in a file."""
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return dict(json.loads(data, parse_constant=pytest.fail))


@pytest.fixture
def folder(add_run: Callable[..., RunFolder]) -> RunFolder:
    """Return the folder of a run with secrets, hostile text and paths of this machine."""
    lines = [
        "</script><script>alert(1)</script>",
        f"reading {Path.home()}/data and {sys.prefix}/lib",
        "the value is made-up-secret-value",
        f"using {TOKEN} now",
        f"-----BEGIN RSA {'PRIVATE'} KEY-----",  # in two parts: the sources contain no key
        "MIIEowIBAAKCAQEA7",
        "-----END RSA PRIVATE KEY-----",
        "last line \u2028",
    ]
    folder = add_run(RUN_ID, output="\n".join(lines).encode(), secret_names=("MY_TOKEN",), command="bash </title>.sh")
    file = MetricsFile(str(folder.path), attempt=1, started_at=1.0, rank=0)
    for step in range(3000):
        file.append("tracking", step, {"reward": float(step % 100), "<b>": float("nan")})
    return folder


def test_file_contains_the_run(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has the page and the data of the run, without secrets, local paths and external references."""
    monkeypatch.setenv("MY_TOKEN", "made-up-secret-value")
    target = tmp_path / "run.html"

    done = export(RUN_ID[:-2], "-o", str(target), "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"path": str(target), "bytes": target.stat().st_size, "runs": [RUN_ID]}
    text = target.read_text()
    for hidden in ("made-up-secret-value", TOKEN, "MIIEowIBAAKCAQEA7", str(Path.home()), sys.prefix):
        assert hidden not in text
    assert str(folder.path) not in text
    assert "<script>alert" not in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "connect-src" not in text
    assert "default-src 'none'" in text

    data = data_of(text)
    run = f"/api/runs/{RUN_ID}"
    assert data["/api/info"]["export"] is True
    assert [each["run_id"] for each in data["/api/runs"]["runs"]] == [RUN_ID]
    assert data[run]["summary"]["state"] == "succeeded"
    assert data[f"{run}/keys"]["keys"] == ["<b>", "reward"]
    assert [line["n"] for line in data[f"{run}/log"]["lines"]] == list(range(1, 9))
    assert data[f"{run}/log"]["lines"][0]["text"] == "</script><script>alert(1)</script>"
    curves = {(each["key"], each["by"]): each for each in data["/api/series"]["series"]}
    assert set(curves) == {(key, by) for key in ("<b>", "reward") for by in ("step", "time")}
    assert (curves["reward", "step"]["count"], max(curves["reward", "step"]["high"])) == (3000, 99)


def test_existing_file_is_kept(folder: RunFolder, tmp_path: Path) -> None:
    """An existing file is replaced only with --force, and an unknown run writes none."""
    target = tmp_path / "run.html"
    target.write_text("mine")

    refused = export(RUN_ID, "--output", str(target))
    assert refused.returncode == 125
    assert "--force" in refused.stderr
    assert target.read_text() == "mine"

    assert export(RUN_ID, "-o", str(target), "--force").returncode == 0
    assert data_of(target.read_text())
    unknown = export("20200101-none", cwd=tmp_path)
    assert unknown.returncode == 125
    assert "20200101-none" in unknown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]
