"""The notebook in a real kernel: its cells, and the stop button."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from skyrl_modal import RunState, runs

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook.ipynb"
DEADLINE = 90.0


@pytest.fixture
def small_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "SkyRL"
    (root / "skyrl-gym").mkdir(parents=True)
    (root / "skyrl-gym" / "pyproject.toml").write_text("")
    monkeypatch.setenv("SKYRL_REPO_ROOT", str(root))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return root


def test_its_cells_run_from_the_first_to_the_last(small_checkout: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": "/"}}).execute()

    texts = {
        cell.id: "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert "step 1\nstep 2\nstep 3\n/root/SkyRL\n" in texts["run"]
    assert "returncode=0" in texts["run"]
    assert texts["output"] == "15"
    assert "started\n" in texts["submit"]
    assert texts["pull"] == "{'loss': 0.5}"


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)


@pytest.fixture
def kernel(small_checkout: Path) -> Iterator[tuple[KernelManager, Any]]:
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd="/", env=dict(os.environ))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=DEADLINE)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def messages(client: Any, request: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a cell says, as it comes, until it is done."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=DEADLINE)
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        yield kind, content
        if kind == "status" and content["execution_state"] == "idle":
            return
    pytest.fail("the cell did not end")


def test_the_stop_button_stops_the_run_and_lets_it_save(kernel: tuple[KernelManager, Any]) -> None:
    manager, client = kernel
    code = (
        "from skyrl_modal import Launcher\n"
        "Launcher(backend='local', gpu=None, ray=None).run(\n"
        "    \"trap 'echo saving; exit 3' INT; echo up; sleep 600 & wait\")"
    )
    request, text, error = client.execute(code), "", {}
    for kind, content in messages(client, request):
        if kind == "stream":
            before, text = text, text + content["text"]
            if "up\n" in text and "up\n" not in before:  # it streams: the command is still running
                manager.interrupt_kernel()
        elif kind == "error":
            error = content

    assert error["ename"] == "KeyboardInterrupt"
    assert "saving\n" in text
    assert "cancelled, exit code 3" in text
    [run] = [run for run in runs(None) if "echo saving" in run.job.command and "sleep 600 & wait" in run.job.command][
        :1
    ]
    assert run.wait(30).state is RunState.CANCELLED
    # The kernel is as it was.
    after = "".join(c["text"] for k, c in messages(client, client.execute("print(6 * 7)")) if k == "stream")
    assert after == "42\n"
