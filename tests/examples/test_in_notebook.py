"""What a notebook shows, in a real kernel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

IMPORTS = "from skyrl_modal import Launcher, runs\nlauncher = Launcher(backend='local', gpu=None, ray=None)\n"

RunCells = Callable[..., list[list[dict[str, Any]]]]


@pytest.fixture
def run_cells(small_checkout: Path) -> RunCells:
    """Run cells in one kernel, and return the outputs of each."""

    def run(*sources: str) -> list[list[dict[str, Any]]]:
        cells = [nbformat.v4.new_code_cell(source) for source in (IMPORTS, *sources)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        client = NotebookClient(notebook, timeout=100, kernel_name="python3", allow_errors=True)
        client.execute()
        return [cell.outputs for cell in notebook.cells[1:]]

    return run


def html_of(outputs: list[dict[str, Any]]) -> str:
    """Return the HTML that a cell shows."""
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def text_of(outputs: list[dict[str, Any]], stream: str) -> str:
    """Return what a cell writes to a stream, without colors, which notebooks show."""
    text = "".join(output["text"] for output in outputs if output.get("name") == stream)
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_objects_are_shown_as_html(run_cells: RunCells) -> None:
    """Plans, results, runs and lists of them are tables, and text from a run is escaped."""
    plan, result, value, table, waited, listed, selected = run_cells(
        "launcher.plan('true')",
        "launcher.run(\"echo '<b>bold</b>'; exit 3\", quiet=True)",
        "result = _\nbool(result), bool(launcher.run('true', quiet=True))",
        "launcher.map(['true', 'exit 2'])",
        "run = launcher.submit('sleep 1')\nprint(run.result().state)\nrun",
        "runs(limit=2)",
        "launcher.plan('true').selections[0]",
    )

    assert ">command</th>" in html_of(plan)
    assert ">true</td>" in html_of(plan)
    assert "failed</td>" in html_of(result)
    assert "&lt;b&gt;bold&lt;/b&gt;" in html_of(result)
    assert "<b>bold" not in html_of(result)
    assert value[0]["data"]["text/plain"] == "(False, True)"
    live, results = (html_of([output]) for output in table)
    assert "succeeded</td>" in live
    assert "exit code 2" in live
    assert "failed</td>" in results
    assert text_of(waited, "stdout") == "succeeded\n"
    assert "sleep 1" in html_of(waited)
    assert html_of(listed).count("<tr>") == 3
    assert "skyrl-gym" in html_of(selected)


def test_curves_are_shown_while_a_run_executes(run_cells: RunCells) -> None:
    """A chart is SVG, and the view of a run is updated in place until it ends. An interrupt does not end the run."""
    program = """
import time
from skyrl_modal import log_metrics
for step in (1, 2, 3):
    log_metrics({"reward": step / 3, "<b>": 1.0}, step=step)
print("\\x1b[31m<i>waiting", flush=True)
time.sleep(1000)
"""
    submitted, chart, wrong, watched, state, ended = run_cells(
        f"run = launcher.submit(['python3', '-c', {program!r}])\n"
        "assert any('waiting' in line for line in run.logs(follow=True))\n"
        "next(row for row in run.metrics(follow=True) if row['step'] == 3)['reward']",
        "run.plot('reward', '<b>')",
        "run.plot('rewrd')",
        "import os, signal\n"
        "def interrupt(message):\n"
        "    if message['msg_type'] == 'update_display_data':\n"
        "        get_ipython().display_pub.unregister_hook(interrupt)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return message\n"
        "get_ipython().display_pub.register_hook(interrupt)\n"
        "run.watch('reward', 'eval')",
        "str(run.state)",
        "run.cancel()\nrun.watch()",
    )

    assert submitted[0]["data"]["text/plain"] == "1.0"
    assert html_of(chart).count("<svg") == 2
    assert "reward: 1<" in html_of(chart)
    assert "&lt;b&gt;: 1<" in html_of(chart)
    assert "⠉" in chart[0]["data"]["text/plain"]
    assert "Similar ones: reward" in wrong[-1]["evalue"]
    assert len(watched) == 1
    assert html_of(watched).count("<svg") == 1
    assert "running</td>" in html_of(watched)
    assert "interrupted: the run continues" in html_of(watched)
    assert ">&lt;i&gt;waiting</pre>" in html_of(watched)
    assert re.search(r">not logged</th><td[^>]*>eval</td>", html_of(watched))
    assert state[0]["data"]["text/plain"] == "'running'"
    assert "cancelled</td>" in html_of(ended)
    assert html_of(ended).count("<svg") == 1


def test_messages_are_not_shown_as_errors(run_cells: RunCells) -> None:
    """The launcher's messages are on standard output, which a notebook does not show in red."""
    (outputs,) = run_cells("result = launcher.run('echo output')")

    assert text_of(outputs, "stderr") == ""
    assert "output\n" in text_of(outputs, "stdout")
    assert "succeeded, exit code 0" in text_of(outputs, "stdout")


def test_parallel_outputs_name_their_run(run_cells: RunCells) -> None:
    """Lines of runs that are awaited at the same time begin with the name of their run."""
    (outputs,) = run_cells(
        "import asyncio, attrs\n"
        "one, two = (attrs.evolve(launcher, name=name) for name in ('one', 'two'))\n"
        "wait = 'for i in 1 2 3; do echo $i; sleep 0.5; done'\n"
        "results = await asyncio.gather(one.arun(wait, quiet=True), two.arun(wait, quiet=True))",
    )

    lines = text_of(outputs, "stdout").splitlines()
    assert {"[one] 2", "[two] 2"} <= set(lines)


def test_traceback_of_a_wrong_value_is_short(run_cells: RunCells) -> None:
    """An error of the package is shown with the lines of the notebook only."""
    declared, ran = run_cells(
        "def make():\n    return Launcher(timeout='soon')\nmake()",
        "launcher.run('exit 3', check=True, quiet=True)",
    )

    text, failed = ("\n".join(outputs[-1]["traceback"]) for outputs in (declared, ran))
    assert text.count("File ") == 2
    assert "return Launcher(timeout='soon')" in text
    assert "SpecError: timeout='soon'" in text
    assert failed.count("File ") == 1  # not those of contextlib, whose decorators the package uses
