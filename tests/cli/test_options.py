"""Tests of the options: what a launcher gets from them, and messages about invalid values."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def skyrl(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that calls the command line in a checkout, with an empty index and configuration."""
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")

    def call(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skyrl_modal", *arguments]
        return subprocess.run(
            command, cwd=checkout, capture_output=True, text=True, check=False, input=stdin, timeout=100
        )

    return call


def values(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Return the values of settings that `config --json` prints, without the defaults."""
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["settings"]
    return {key: item["value"] for key, item in found.items() if item["origin"] == "argument"}


def test_each_option_sets_its_value(skyrl: Command) -> None:
    """Every option of the launcher reaches its setting."""
    options = (
        "--gpu H100:8,A100:8 --nodes 2 --rdma --cpu 0.5 --memory 1024 --region us-east --cloud aws --timeout 90m "
        "--retries 2 --should-retry 1,137 --resume auto --budget 10 --rate 2.5 --stall 20m --start-deadline 5m "
        "--lease 1m --grace 30s --workdir skyrl --include a --include b --exclude c --volume /root/v=mine --env A=1 "
        "--env B=2=3 --secret PATH --secret-if-set NONE --modal-secret hf=HF_TOKEN --image python:3.12 --pip wandb "
        "--apt git --no-ray --app-name mine --name first --tag x --tag y"
    )

    assert values(skyrl("config", "--json", *options.split())) == {
        "gpu": ["H100:8", "A100:8"],
        "nodes": 2,
        "rdma": True,
        "cpu": 0.5,
        "memory": 1024,
        "region": "us-east",
        "cloud": "aws",
        "timeout": "90m",
        "retries": 2,
        "should_retry": [1, 137],
        "resume": "auto",
        "budget": 10.0,
        "rate": 2.5,
        "stall": "20m",
        "start_deadline": "5m",
        "lease": "1m",
        "grace": "30s",
        "workdir": "skyrl",
        "include": ["a", "b"],
        "exclude": ["c"],
        "volumes": [{"mount_path": "/root/v", "name": "mine"}],
        "env.A": "1",
        "env.B": "2=3",
        "secrets": [
            "PATH",
            {"name": "NONE", "source": "environment", "optional": True},
            {"name": "hf", "keys": ["HF_TOKEN"]},
        ],
        "image.base": "python:3.12",
        "image.pip": ["wandb"],
        "image.apt": ["git"],
        "ray": False,
        "app_name": "mine",
        "name": "first",
        "tags": ["x", "y"],
    }


def test_excluded_file_is_not_in_the_run(skyrl: Command) -> None:
    """--exclude and --include decide about the files of the checkout, and --env and --mount reach the command."""
    options = (
        "--exclude",
        "train.py",
        "--include",
        "ignored.secret",
        "--mount",
        "/root/more=skyrl-gym",
        "--env",
        "A=b c",
    )

    done = skyrl("run", "--no-ray", "-q", *options, "ls -a; ls /root/more; echo $A")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "train.py" not in lines
    assert {"ignored.secret", "skyrl_gym", "b c"} <= set(lines)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--gpu=A100:0", "--gpu A100:0: write NAME or NAME:COUNT"),
        ("--timeout=soon", "--timeout soon: pass a duration such as 45s, 90m, 24h or 1h30m"),
        ("--backend=locl", "--backend locl: Did you mean local?"),
        ("--resume=auot", "--resume auot: pass auto or none. Did you mean auto?"),
        ("--nodes=0", "--nodes 0: pass a whole number of at least 1"),
        ("--budget=-1", "--budget -1: pass a number above 0, or none"),
        ("--should-retry=0", "--should-retry 0: pass exit codes"),
        ("--mount=/tmp=.", "--mount /tmp: the run needs"),
        ("--volume=/root/x=a b", "--volume 'a b': use 1 to 64 letters"),
        ("--env=1=value", "--env 1=value: a variable's name"),
        ("--tag=a,b", "--tag a,b: use 1 to 64 characters"),
        ("--app-name=a b", "--app-name 'a b': use 1 to 64"),
        ("--secret=A=value", "--secret '(not shown)': pass the name of a variable"),
        ("--secret=NO_SUCH_VARIABLE", "--secret NO_SUCH_VARIABLE: the environment"),
        ("--modal-secret=a/b", "--modal-secret a/b: use 1 to 64"),
        ("--workdir=../x", "--workdir ../x: pass a folder in the checkout"),
        ("--rdma", "--rdma: RDMA connects nodes"),
        ("--profile=x", "--profile x: there is no such profile"),
    ],
)
def test_message_names_the_option(skyrl: Command, option: str, message: str) -> None:
    """An invalid value is an error of the launcher, which begins with the option and the value."""
    done = skyrl("plan", option, "true")

    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"skyrl-modal: {message}")


def test_message_names_the_variable(skyrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of the environment is named with its variable."""
    monkeypatch.setenv("MODAL_GPU", "A100:0")
    assert skyrl("run", "true").stderr.startswith("skyrl-modal: $MODAL_GPU=A100:0: write NAME")
    monkeypatch.setenv("MODAL_GPU", "L4")
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "lokal")
    assert skyrl("run", "true").stderr.startswith("skyrl-modal: $SKYRL_MODAL_BACKEND=lokal: Did you mean local?")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--gup", "L4", "true"), "--gpu"),
        (("rnu", "true"), "run"),
        (("run", "--env", "A", "true"), "--env requires NAME=VALUE"),
        (("run", "--nodes", "many", "true"), "--nodes"),
        (("run", "--memory", "much", "true"), "--memory"),
        (("ls", "--gpu", "L4"), "--gpu"),
    ],
)
def test_usage_error(skyrl: Command, arguments: tuple[str, ...], message: str) -> None:
    """Errors of the command line's form exit with 2, and name the nearest command or option."""
    done = skyrl(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_help_shows_real_defaults(skyrl: Command) -> None:
    """The help text of `run` has the declared defaults, and headings."""
    text = " ".join(skyrl("run", "--help").stdout.split())

    for part in ("Limit of each attempt. Default: 1h.", "Default: $MODAL_GPU, else L4:1.", "Limits:", "Default: 6s."):
        assert part in text


def test_map_runs_each_line(skyrl: Command) -> None:
    """`map` runs the lines of its input, and prints results in their order. Empty lines and comments are skipped."""
    done = skyrl("map", "--no-ray", "-q", "--json", "-", stdin="echo a\n\n# comment\n  exit 3\n")

    results = json.loads(done.stdout)
    assert done.returncode == 1
    assert [(one["command"], one["state"], one["returncode"]) for one in results] == [
        ("echo a", "succeeded", 0),
        ("exit 3", "failed", 3),
    ]
    assert skyrl("logs", results[0]["run_id"]).stdout == "a\n"


def test_map_of_a_file(skyrl: Command, tmp_path: Path) -> None:
    """`map` exits with 0 if all commands succeed, and messages do not repeat their texts without a terminal."""
    (tmp_path / "commands").write_text("echo a-long-command\ntrue\n")

    done = skyrl("map", "--no-ray", "--max-parallel", "1", str(tmp_path / "commands"))

    assert done.returncode == 0
    assert [line.split()[1:3] for line in done.stdout.splitlines()] == [["succeeded", "0"]] * 2
    assert "line 1: succeeded" in done.stderr
    assert "echo a-long-command" not in done.stderr


@pytest.mark.parametrize(("text", "message"), [("\n# nothing\n", "no command"), ("\udcff", "not UTF-8")])
def test_map_without_commands(skyrl: Command, tmp_path: Path, text: str, message: str) -> None:
    """A file without commands is an error, and so is one that is not text."""
    path = tmp_path / "commands"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    done = skyrl("map", "--no-ray", str(path))

    assert done.returncode == 125
    assert message in done.stderr
