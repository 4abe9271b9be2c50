"""Tests of examples/notebook.ipynb in a real kernel."""

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
from tests.support.commands import saving_command

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook.ipynb"
TIMEOUT = 90.0


def test_all_cells_run(small_checkout: Path) -> None:
    """All cells of the notebook run, and their outputs are as described."""
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


def test_notebook_has_no_outputs() -> None:
    """The notebook in the repository has no outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)


@pytest.fixture
def kernel(small_checkout: Path) -> Iterator[tuple[KernelManager, Any]]:
    """Start a kernel, and yield its manager and its client."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd="/", env=dict(os.environ))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=TIMEOUT)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def messages(client: Any, request: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the messages of a cell until it has finished."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=TIMEOUT)
        if message["parent_header"].get("msg_id") != request:
            continue
        kind, content = message["msg_type"], message["content"]
        yield kind, content
        if kind == "status" and content["execution_state"] == "idle":
            return
    pytest.fail("the cell did not end")


def test_interrupt_stops_the_run_after_saving(kernel: tuple[KernelManager, Any]) -> None:
    """Interrupting the kernel stops the run after it has saved; the kernel can still be used."""
    manager, client = kernel
    command = saving_command(signals="INT")
    code = f"from skyrl_modal import Launcher\nLauncher(backend='local', gpu=None, ray=None).run({command!r})"
    request, text, error = client.execute(code), "", {}
    for kind, content in messages(client, request):
        if kind == "stream":
            before, text = text, text + content["text"]
            if "up\n" in text and "up\n" not in before:  # streamed while the command runs
                manager.interrupt_kernel()
        elif kind == "error":
            error = content

    assert error["ename"] == "KeyboardInterrupt"
    assert "saving\n" in text
    assert "cancelled, exit code 3" in text
    run = next(run for run in runs(None) if run.job.command == command)
    assert run.wait(30).state is RunState.CANCELLED
    # The kernel still works.
    after = "".join(c["text"] for k, c in messages(client, client.execute("print(6 * 7)")) if k == "stream")
    assert after == "42\n"
