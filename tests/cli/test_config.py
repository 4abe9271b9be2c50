"""Tests of the commands about the configuration, on a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def skyrl(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that calls the command line in a checkout, with an empty configuration of the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skyrl_modal", *arguments]
        return subprocess.run(
            command, cwd=checkout, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=100
        )

    return call


#: Executes a command, and prints how often the file with the first argument as its path was opened.
COUNT_READS = """
import sys
path, *arguments = sys.argv[1:]
opened = []
sys.addaudithook(lambda event, details: opened.append(1) if event == "open" and details[0] == path else None)
sys.argv = ["skyrl-modal", *arguments]
from skyrl_modal.cli import main
try:
    main()
finally:
    print(f"opened {len(opened)}", file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [("run", "--backend", "local", "--no-ray", "true"), ("config",)])
def test_own_file_is_read_once(checkout: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A command opens the user's file once for all of its settings, and uses those of the chosen profile."""
    own = tmp_path / "config" / "skyrl_modal" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text('confirm_above = 1000\nnotify = "http://127.0.0.1:1/"\n[profile.quiet]\nconfirm_above = -1\n')
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")}

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", COUNT_READS, str(own), *arguments[:1], *more, *arguments[1:]]
        return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)

    done = call()

    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "opened 1")
    if arguments[0] == "run":
        assert "127.0.0.1:1" in done.stderr  # the result could not be sent
        assert "profile.quiet.confirm_above = -1" in call("--profile", "quiet").stderr


def test_origin_of_each_value(skyrl: Command, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`config` shows for each setting what has set it."""
    (tmp_path / "config" / "skyrl_modal").mkdir(parents=True)
    (tmp_path / "config" / "skyrl_modal" / "config.toml").write_text('region = "eu"\nretries = 1\n')
    (checkout / "pyproject.toml").write_text(
        "[tool.skyrl-modal]\nretries = 2\n[tool.skyrl-modal.profile.a]\nnodes = 2\n"
    )
    monkeypatch.setenv("MODAL_GPU", "T4")

    done = skyrl("config", "--json", "--profile", "a", "--timeout", "5m", "--no-ray")

    shown = json.loads(done.stdout)
    sources = {key: (item["value"], item["source"]) for key, item in shown["settings"].items() if item["source"]}
    assert sources == {
        "timeout": ("5m", "--timeout"),
        "ray": (False, "--ray"),
        "gpu": (["T4"], "$MODAL_GPU"),
        "nodes": (2, "pyproject.toml: profile.a.nodes"),
        "retries": (2, "pyproject.toml: retries"),
        "region": ("eu", f"{tmp_path}/config/skyrl_modal/config.toml: region"),
    }
    assert shown["settings"]["lease"] == {"value": 600.0, "origin": "default", "source": None}
    assert shown["files"] == [str(checkout / "pyproject.toml"), f"{tmp_path}/config/skyrl_modal/config.toml"]
    lines = [line.split(maxsplit=1) for line in skyrl("config").stdout.splitlines()]
    assert dict(lines)["retries"].split() == ["2", "pyproject.toml:", "retries"]


def test_invalid_value_is_reported(skyrl: Command, checkout: Path) -> None:
    """`config` refuses what a run would refuse."""
    (checkout / "skyrl-modal.toml").write_text("retries = 99\n")

    done = skyrl("config")

    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == "skyrl-modal: skyrl-modal.toml: retries = 99: pass a whole number from 0 to 10\n"


def test_run_uses_the_file(skyrl: Command, checkout: Path) -> None:
    """A run has the settings of the file, and an option replaces one."""
    (checkout / "skyrl-modal.toml").write_text('ray = false\nenv = { A = "file", B = "file" }\ntimeout = "1s"\n')

    done = skyrl("run", "--backend", "local", "--env", "A=option", "echo $A $B; exec sleep 60")

    assert (done.returncode, done.stdout) == (124, "option file\n")


def test_file_that_is_written(skyrl: Command, checkout: Path, tmp_path: Path) -> None:
    """`init --yes` writes files that `config` accepts, and refuses to replace them."""
    for options in ((), ("--user",)):
        done = skyrl("init", "--yes", *options)
        path = Path(done.stdout.strip())
        assert done.returncode == 0
        assert tomllib.loads(path.read_text())
        assert skyrl("config").returncode == 0
        assert skyrl("init", "--yes", *options).returncode == 125
    assert (checkout / "skyrl-modal.toml").is_file()


def test_questions_need_a_terminal(skyrl: Command, checkout: Path) -> None:
    """Without a terminal, `init` asks nothing and names the option."""
    done = skyrl("init")

    assert done.returncode == 125
    assert "--yes" in done.stderr
    assert not (checkout / "skyrl-modal.toml").exists()


def test_answers_on_a_terminal(skyrl: Command, checkout: Path) -> None:
    """`init` asks again after an invalid answer, and an empty answer is the default."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "skyrl_modal", "init"],
        cwd=checkout,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.close(terminal)
    os.write(controller, b"A100:0\nA100:4\n\nmine\n")
    _, errors = process.communicate(timeout=60)
    os.close(controller)

    assert process.returncode == 0, errors
    written = tomllib.loads((checkout / "skyrl-modal.toml").read_text())
    assert (written["gpu"], written["timeout"], written["volumes"]) == ("A100:4", "24h", [{"name": "mine"}])
    assert b"write NAME or NAME:COUNT" in errors


def test_schema_describes_each_key(skyrl: Command) -> None:
    """`config --schema` prints a JSON schema with all keys, also in profiles."""
    schema = json.loads(skyrl("config", "--schema").stdout)

    keys = set(json.loads(skyrl("config", "--json").stdout)["settings"]) | {"env"}
    assert {key.partition(".")[0] for key in keys} | {"profile"} == set(schema["properties"])
    assert schema["$defs"]["settings"]["properties"]["image"]["properties"]["pip"]["description"]
