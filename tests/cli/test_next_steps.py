"""Tests of what commands report at the end, at Ctrl-C and to a URL; and of ``rerun``."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
PROGRAM = [sys.executable, "-m", "skyrl_modal"]


@pytest.fixture
def skyrl(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that calls the command line in a checkout, with an empty index and configuration."""
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")
    monkeypatch.delenv("SKYRL_MODAL_NOTIFY", raising=False)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments], cwd=checkout, capture_output=True, text=True, check=False, timeout=100
        )

    return call


def test_submitted_run_names_next_step(skyrl: Command) -> None:
    """`submit` prints the id alone on standard output, and the next command as a message."""
    done = skyrl("submit", "--no-ray", "exit 3")

    run_id = done.stdout.removesuffix("\n")
    assert f"skyrl-modal attach {run_id}" in done.stderr
    attached = skyrl("attach", "latest")
    assert attached.returncode == 3
    assert "failed, exit code 3" in attached.stderr


def test_cancelled_run_names_next_step(skyrl: Command) -> None:
    """`cancel` reports the request, and of a run that has ended how it ended."""
    run_id = skyrl("submit", "--no-ray", "exec sleep 600").stdout.strip()

    assert f"skyrl-modal wait {run_id}" in skyrl("cancel", run_id).stderr
    assert skyrl("wait", run_id).returncode == 130
    again = skyrl("cancel", run_id)
    assert again.returncode == 0
    assert "has ended already" in again.stderr
    assert "cancelled" in again.stderr


@pytest.mark.parametrize("arguments", [("logs", "--follow"), ("attach",)])
def test_interrupt_leaves_the_run(skyrl: Command, checkout: Path, arguments: tuple[str, ...]) -> None:
    """Ctrl-C ends the command with 130, and the message names the commands that show and stop the run."""
    run_id = skyrl("submit", "--no-ray", "echo up; exec sleep 600").stdout.strip()
    process = subprocess.Popen(
        [*PROGRAM, *arguments, run_id], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert f"`skyrl-modal cancel {run_id}` stops it" in errors
    assert json.loads(skyrl("ps", "--json").stdout)[0]["state"] == "running"
    skyrl("cancel", "--now", run_id)
    skyrl("wait", run_id)


class _Hook(BaseHTTPRequestHandler):
    """Puts the content of each request into the queue of the server."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.put((self.path, json.loads(body)))  # type: ignore[attr-defined]  # set by the fixture
        self.send_response(self.server.status)  # type: ignore[attr-defined]  # set by the fixture
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def hook() -> Iterator[Any]:
    """Return an HTTP server on this machine whose ``received`` has the requests."""
    with HTTPServer(("127.0.0.1", 0), _Hook) as server:
        server.received, server.status = queue.Queue(), 200  # type: ignore[attr-defined]  # attributes of this test
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url(hook: Any) -> str:
    """Return the URL of the server, with a token."""
    return f"http://127.0.0.1:{hook.server_port}/my-token"


def test_result_is_sent(skyrl: Command, hook: Any) -> None:
    """The result is sent with the names of its attributes, and without the output."""
    done = skyrl("run", "-q", "--no-ray", "--name", "first", "--notify", url(hook), "echo private; exit 3")

    assert done.returncode == 3
    path, content = hook.received.get(timeout=10)
    [run] = content["runs"]
    assert path == "/my-token"
    assert (run["state"], run["returncode"], run["name"], run["cause"]) == ("failed", 3, "first", "command_failed")
    assert content["text"] == f"{run['run_id']}: failed, exit code 3"
    assert "log_tail" not in run


def test_results_of_a_map_are_sent_once(
    skyrl: Command, hook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`map` sends one request for all commands, and the URL can come from the environment."""
    monkeypatch.setenv("SKYRL_MODAL_NOTIFY", url(hook))
    (tmp_path / "commands").write_text("exit 1\ntrue\n")

    skyrl("map", "-q", "--no-ray", str(tmp_path / "commands"))

    _, content = hook.received.get(timeout=10)
    assert [run["returncode"] for run in content["runs"]] == [1, 0]
    assert hook.received.empty()


@pytest.mark.parametrize("status", [500, 302])
def test_failure_to_send_is_a_warning(skyrl: Command, hook: Any, status: int) -> None:
    """The exit code is the command's, the warning has no token, and redirects are not followed."""
    hook.status = status

    done = skyrl("run", "--no-ray", "--notify", url(hook), "exit 4")

    assert done.returncode == 4
    assert f"returned status {status}" in done.stderr
    assert "my-token" not in done.stderr
    hook.received.get(timeout=10)
    assert hook.received.empty()


def test_url_from_files(skyrl: Command, hook: Any, checkout: Path, tmp_path: Path) -> None:
    """The user's own file may have the URL, and that of the checkout may not. No message shows it."""
    (tmp_path / "CONFIG" / "skyrl_modal").mkdir(parents=True)
    (tmp_path / "CONFIG" / "skyrl_modal" / "config.toml").write_text(f'notify = "{url(hook)}"\n')

    assert skyrl("run", "-q", "--no-ray", "true").returncode == 0
    assert hook.received.get(timeout=10)[0] == "/my-token"
    shown = skyrl("config")
    assert f"http://127.0.0.1:{hook.server_port}/..." in shown.stdout
    assert "my-token" not in shown.stdout + skyrl("config", "--json").stdout
    (checkout / "skyrl-modal.toml").write_text('notify = "http://127.0.0.1/other-token"\n')
    refused = skyrl("run", "-q", "--no-ray", "true")
    assert refused.returncode == 125
    assert "notify = (not shown): the file of a checkout may not set this" in refused.stderr
    assert "token" not in refused.stderr


@pytest.mark.parametrize("text", ["ftp://127.0.0.1/token", "127.0.0.1", "http:///token", "http://a b/token"])
def test_invalid_url(skyrl: Command, text: str) -> None:
    """A URL that is not valid is refused before the run starts, and is not repeated."""
    done = skyrl("run", "--no-ray", "--notify", text, "echo started")

    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "skyrl-modal: --notify: pass a URL such as https://example.com/hook\n"


def test_rerun_with_another_value(skyrl: Command, checkout: Path) -> None:
    """`rerun` repeats a run with its settings, and --set changes a value of the trainer in a script."""
    module = checkout / "skyrl" / "train" / "entrypoints" / "main_base.py"
    module.parent.mkdir(parents=True)
    for folder in (module.parent, module.parent.parent):
        (folder / "__init__.py").touch()
    module.write_text("import os, sys\nprint(os.environ['A'], sys.argv[1:])\n")
    (checkout / "go.sh").write_text('exec python -m skyrl.train.entrypoints.main_base trainer.epochs=1 "$@"\n')
    options = ("--no-ray", "-q", "--env", "A=1", "--env", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}")
    assert skyrl("run", *options, "--name", "first", "bash go.sh").stdout == "1 ['trainer.epochs=1']\n"

    again = skyrl("rerun", "-q", "--name", "second", "--set", "trainer.epochs=5", "first")

    assert (again.returncode, again.stdout) == (0, "1 ['trainer.epochs=1', 'trainer.epochs=5']\n")
    assert json.loads(skyrl("ps", "--json").stdout)[0]["name"] == "second"
    assert (
        skyrl("rerun", "-q", "--set", "trainer.epochs=6", "second").stdout
        == "1 ['trainer.epochs=1', 'trainer.epochs=6']\n"
    )
    refused = skyrl("rerun", "--set", "other", "second")
    assert refused.returncode == 2


def test_rerun_of_changed_files(skyrl: Command, checkout: Path) -> None:
    """A warning reports files that differ from those of the earlier run; without a trainer, --set is refused."""
    skyrl("run", "-q", "--no-ray", "cat train.py; exit 3")
    (checkout / "train.py").write_text("changed\n")

    again = skyrl("rerun", "latest")

    assert (again.returncode, again.stdout) == (3, "changed\n")
    assert "differ from those that the run used" in again.stderr
    refused = skyrl("rerun", "--set", "a=1", "latest")
    assert refused.returncode == 125
    assert refused.stderr.startswith("skyrl-modal: --set")
