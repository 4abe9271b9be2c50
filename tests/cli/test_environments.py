"""Every command and every public method in broken environments: no foreign exception, and the exit code survives."""

from __future__ import annotations

import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from skyrl_modal import Launcher, Run
from skyrl_modal.cli.commands import cli
from skyrl_modal.spec.run_spec import RunSpec
from tests.support.loopback import LoopbackModal

pytestmark = pytest.mark.slow

#: A user id that no passwd entry has.
UNKNOWN_USER = 54321
#: The exit code of the command that ``run`` executes.
RUN_CODE = 7
LAUNCHER_ERROR = 125
#: The commands that cannot do anything without Modal, if that is the backend.
NEEDS_MODAL = {
    "attach",
    "cancel",
    "cat",
    "du",
    "logs",
    "ls",
    "metrics",
    "pull",
    "push",
    "rerun",
    "rm",
    "run",
    "submit",
    "wait",
    "why",
}

#: Calls every public method in this environment and prints the outcome of each as JSON.
METHODS = """
import asyncio, json, os, sys, warnings

warnings.simplefilter("ignore")
outcomes = {}
run_id, folder, report = sys.argv[1:]


def call(name, function):
    try:
        value = function()
    except Exception as error:
        outcomes[name] = [cls.__name__ for cls in type(error).__mro__] + [str(error)]
        return None
    outcomes[name] = ["ok"]
    return value


from skyrl_modal import Launcher, Run, runs

launcher = call("Launcher", lambda: Launcher(ray=None, gpu=None, checkout=folder))
output = bytearray()
run = None
if launcher is not None:
    options = {"quiet": True, "output": output.extend}
    call("run", lambda: launcher.run("exit 7", **options))
    call("arun", lambda: asyncio.run(launcher.arun("exit 7", **options)))
    submitted = call("submit", lambda: launcher.submit("true"))
    other = call("asubmit", lambda: asyncio.run(launcher.asubmit("true")))
    for one in (submitted, other):
        if one is not None:
            one.wait(60)
    call("map", lambda: launcher.map(["exit 7"], quiet=True))
    call("plan", lambda: str(launcher.plan("true")))
    call("ls", lambda: launcher.ls())
    call("push", lambda: launcher.push(os.path.join(folder, "train.py"), "/root/data/train.py"))
    call("pull", lambda: launcher.pull("/root/data/train.py", os.path.join(folder, "copied.txt")))
    call("plan_push", lambda: launcher.plan_push(os.path.join(folder, "train.py"), "/root/data/train.py").to_json())
    call("plan_pull", lambda: launcher.plan_pull("/root/data/train.py", os.path.join(folder, "other.txt")).to_json())
    call("read", lambda: list(launcher.read("/root/data/train.py")))
    call("du", lambda: launcher.du())
    call("remove", lambda: launcher.remove("/root/data/train.py"))
call("from_config", lambda: Launcher.from_config())
call("from_run", lambda: Launcher.from_run(run_id))
call("runs", lambda: [one.id for one in runs()])
run = call("attach", lambda: Run.attach(run_id))
for name in ("state", "url", "log_path", "backend", "dashboard_token", "unavailable_reason"):
    call(name, lambda: getattr(run, name)) if run else outcomes.setdefault(name, ["ok"])
for name, function in {
    "logs": lambda: list(run.logs()), "events": lambda: list(run.events()), "wait": lambda: run.wait(5),
    "result": lambda: run.result(), "cancel": lambda: run.cancel(), "log_bytes": lambda: list(run.log_bytes()),
    "kept_logs": lambda: run.kept_logs() if run.job.ray else None,
    "checkpoints": lambda: run.checkpoints(), "cost": lambda: run.cost,
    "cost_at": lambda: run.cost_at(run.state), "metrics": lambda: list(run.metrics()),
    "pull_run": lambda: run.pull(folder, quiet=True),
}.items():
    call(name, function) if run else outcomes.setdefault(name, ["ok"])
with open(report, "w") as file:
    json.dump(outcomes, file)
"""


class Case:
    """One environment in which commands are called.

    Args:
        shell: Shell text that prepares the process and ends with ``exec "$@"``.
        env: Changed variables; None removes one.
    """

    def __init__(self, shell: str = 'exec "$@"', env: Mapping[str, str | None] | None = None) -> None:
        self.shell = shell
        self.env = dict(env or {})

    def call(self, arguments: list[str], checkout: Path) -> subprocess.CompletedProcess[bytes]:
        """Call Python with arguments in this environment, in a folder of the checkout."""
        env = {name: value for name, value in {**os.environ, **self.env}.items() if value is not None}
        return subprocess.run(
            ["sh", "-c", self.shell, "sh", sys.executable, *arguments],
            cwd=checkout,
            env=env,
            capture_output=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def finished_run(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the id of a local run that has ended, in folders that every user may read."""
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    return Launcher(checkout=checkout, ray=None).run("echo one", quiet=True, output=bytearray().extend).run_id


def commands(run_id: str, checkout: Path) -> dict[str, tuple[list[str], set[int]]]:
    """Return the arguments of every command, and its exit codes apart from that of an error of the launcher."""
    (checkout / "commands.txt").write_text("true\n")
    made = {
        "run": (["run", "--no-ray", "--gpu", "none", f"echo text; exit {RUN_CODE}"], {RUN_CODE}),
        "plan": (["plan", "true"], {0}),
        "submit": (["submit", "--no-ray", "--gpu", "none", "true"], {0}),
        "logs": (["logs", run_id], {0}),
        "ps": (["ps"], {0}),
        "attach": (["attach", run_id], {0}),
        "wait": (["wait", run_id], {0}),
        "cancel": (["cancel", run_id], {0}),
        "ls": (["ls"], {0}),
        "push": (["push", str(checkout / "train.py"), "/root/data/train.py"], {0}),
        "pull": (["pull", f"/root/data/.skyrl_modal/runs/{run_id}/output.log", str(checkout / "copied.txt")], {0}),
        "cat": (["cat", f"/root/data/.skyrl_modal/runs/{run_id}/output.log"], {0}),
        "du": (["du", "/root/data"], {0}),
        "rm": (["rm", "--dry-run", "--force", f"/root/data/.skyrl_modal/runs/{run_id}/output.log"], {0}),
        "checkpoints": (["checkpoints", run_id], {0}),
        "cost": (["cost"], {0}),
        "metrics": (["metrics", run_id], {0}),
        "map": (["map", "--no-ray", "--gpu", "none", "--quiet", str(checkout / "commands.txt")], {0, 1}),
        "rerun": (["rerun", run_id], {0}),
        "why": (["why", run_id], {0}),
        "config": (["config"], {0}),
        "init": (["init", "--help"], {0}),
        "completion": (["completion", "bash"], {0}),
        "doctor": (["doctor"], {0, 1}),
        "clean": (["clean", "--dry-run"], {0}),
        "--help": (["--help"], {0}),
        "--version": (["--version"], {0}),
    }
    assert set(cli.commands) <= set(made), "add the new command to this test"
    return {name: value for name, value in made.items() if name in cli.commands or name.startswith("-")}


def check_commands(case: Case, run_id: str, checkout: Path) -> dict[str, int]:
    """Call every command, check that it fails only with a message, and return the exit codes."""

    def call(item: tuple[str, tuple[list[str], set[int]]]) -> tuple[str, int]:
        name, (arguments, expected) = item
        done = case.call(["-m", "skyrl_modal", *arguments], checkout)
        text = done.stderr.decode(errors="replace")
        assert "Traceback" not in text, (name, text)
        assert "Exception ignored" not in text, (name, text)
        assert done.returncode in {*expected, LAUNCHER_ERROR}, (name, done.returncode, text)
        return name, done.returncode

    with ThreadPoolExecutor(6) as pool:  # most of the time, they wait
        return dict(pool.map(call, commands(run_id, checkout).items()))


def check_methods(case: Case, run_id: str, checkout: Path) -> dict[str, list[str]]:
    """Call every public method, check that it raises only this package's errors, and return the outcomes."""
    report = checkout / "report.json"
    report.touch()
    report.chmod(0o666)
    done = case.call(["-c", METHODS, run_id, str(checkout), str(report)], checkout)
    assert report.read_text(), done.stderr.decode()
    outcomes: dict[str, list[str]] = json.loads(report.read_text())
    foreign = {name: classes for name, classes in outcomes.items() if classes[0] != "ok" and not is_own(classes)}
    assert foreign == {}, done.stderr.decode()
    if outcomes["Launcher"] == ["ok"]:
        names = {name for cls in (Launcher, Run) for name, _ in inspect.getmembers(cls) if not name.startswith("_")}
        fields = {field.name for field in attrs.fields(Launcher)}
        # The properties of RunSpec only read its fields, which were validated when the launcher was created.
        assert names - fields - set(dir(RunSpec)) - set(outcomes) == set()
    return outcomes


def is_own(classes: list[str]) -> bool:
    """Return whether an exception is one of this package."""
    return "SkyRLModalError" in classes


WORKING = {
    "stdout full": Case('exec "$@" >/dev/full'),
    "stderr full": Case('exec "$@" 2>/dev/full'),
    "both full": Case('exec "$@" >/dev/full 2>&1'),
    "stdin closed": Case('exec "$@" <&-'),
    "stdout closed": Case('exec "$@" >&-'),
    "stderr closed": Case('exec "$@" 2>&-'),
    "all closed": Case('exec "$@" <&- >&- 2>&-'),
    "ascii": Case(env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}),
    "latin-1": Case(env={"PYTHONIOENCODING": "latin-1:strict"}),
}


@pytest.mark.parametrize("name", WORKING)
def test_commands_with_broken_streams(name: str, finished_run: str, checkout: Path) -> None:
    """Streams that are full, closed or not UTF-8 change no exit code of a run, and cause no traceback."""
    (checkout / "n\u00e4me-\udcff\u202e").write_text("")

    codes = check_commands(WORKING[name], finished_run, checkout)

    assert [codes[command] for command in ("run", "attach", "wait", "cancel")] == [RUN_CODE, 0, 0, 0]
    if "full" not in name:
        assert LAUNCHER_ERROR not in codes.values()


@pytest.mark.parametrize("name", ["all closed", "both full", "ascii"])
def test_methods_with_broken_streams(name: str, finished_run: str, checkout: Path) -> None:
    """The public methods do not depend on the standard streams."""
    outcomes = check_methods(WORKING[name], finished_run, checkout)

    assert set(map(tuple, outcomes.values())) == {("ok",)}


def test_removed_working_directory(finished_run: str, checkout: Path) -> None:
    """In a folder that was removed, everything works that does not need a checkout there."""
    case = Case('mkdir "$$" && cd "$$" && rmdir "../$$" && exec "$@"')

    codes = check_commands(case, finished_run, checkout)
    outcomes = check_methods(case, finished_run, checkout)

    needs_checkout = {"map", "plan", "run", "submit"}
    assert {name for name, code in codes.items() if code == LAUNCHER_ERROR} == needs_checkout
    assert set(map(tuple, outcomes.values())) == {("ok",)}


#: Starts the process as a user without a passwd entry, who may read everything (this Python may be in a private folder)
#: and write what he owns.
AS_OTHER_USER = (
    f"exec setpriv --reuid={UNKNOWN_USER} --regid={UNKNOWN_USER} --clear-groups --inh-caps=+dac_read_search "
    '--ambient-caps=+dac_read_search -- "$@"'
)


@pytest.fixture
def as_other_user(checkout: Path) -> str:
    """Return shell text that starts a process of a user without a passwd entry, who owns the checkout."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, UNKNOWN_USER, UNKNOWN_USER, follow_symlinks=False)
    return AS_OTHER_USER


NO_HOME = dict.fromkeys(("HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "MODAL_CONFIG_PATH"))


def test_no_home_and_no_passwd_entry(finished_run: str, as_other_user: str, checkout: Path) -> None:
    """Without a home folder, commands that need it fail with a message that names HOME, and none is created."""
    case = Case(as_other_user, env=NO_HOME)

    codes = check_commands(case, finished_run, checkout)
    outcomes = check_methods(case, finished_run, checkout)

    assert codes["plan"] == codes["--help"] == 0
    assert codes["run"] == LAUNCHER_ERROR
    assert "HOME" in outcomes["run"][-1]
    assert not (checkout / "~").exists()


@pytest.mark.parametrize("kind", ["file", "read-only"])
def test_home_that_cannot_be_written(
    finished_run: str, tmp_path: Path, checkout: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """With a home folder that is read-only, or that is a file, commands fail with a message that names the folder."""
    home = tmp_path / "home"
    shell = 'exec "$@"'
    if kind == "file":
        home.touch()
    else:
        home.mkdir(mode=0o555)
        shell = request.getfixturevalue("as_other_user") if os.geteuid() == 0 else shell
    case = Case(shell, env={**NO_HOME, "HOME": str(home)})

    codes = check_commands(case, finished_run, checkout)
    outcomes = check_methods(case, finished_run, checkout)

    assert codes["plan"] == codes["ps"] == 0
    assert codes["run"] == codes["push"] == LAUNCHER_ERROR
    assert str(home) in outcomes["run"][-1]
    assert str(home) in outcomes["push"][-1]


@pytest.fixture
def refused_port() -> Iterator[int]:
    """Return a port that refuses connections."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


TOKEN = {"MODAL_TOKEN_ID": "ak-x", "MODAL_TOKEN_SECRET": "as-x"}


def modal_case(kind: str, port: int, folder: Path) -> Case:
    """Return an environment in which Modal cannot be used."""
    env = {"SKYRL_MODAL_BACKEND": "modal", "NO_PROXY": "127.0.0.1"}
    if kind == "damaged settings":
        (folder / "damaged.toml").write_text("[[[")
        return Case(env={**env, "MODAL_CONFIG_PATH": str(folder / "damaged.toml")})
    if kind == "no network":
        return Case(env={**env, **TOKEN, "MODAL_SERVER_URL": f"http://127.0.0.1:{port}"})
    return Case(env=env)


@pytest.fixture
def modal_run(finished_run: str, tmp_path: Path) -> str:
    """Return the id of a run in the index whose backend is Modal."""
    [path] = (tmp_path / "XDG_STATE_HOME").rglob(f"{finished_run}.json")
    record = json.loads(path.read_text())
    record.update(backend="modal", handle={"call_id": "fc-01"})
    path.write_text(json.dumps(record))
    return finished_run


@pytest.mark.parametrize("kind", ["no token", "damaged settings", "no network"])
def test_modal_that_cannot_be_used(
    kind: str, modal_run: str, refused_port: int, checkout: Path, tmp_path: Path
) -> None:
    """Commands that need Modal fail with a message within the timeout of the first contact; the others work."""
    case = modal_case(kind, refused_port, tmp_path)

    codes = check_commands(case, modal_run, checkout)

    # ``map`` exits with 1 if none of its commands could be started.
    assert {name for name, code in codes.items() if code == LAUNCHER_ERROR} - {"map"} == NEEDS_MODAL


@pytest.mark.parametrize("kind", ["no token", "damaged settings"])
def test_methods_without_modal(kind: str, modal_run: str, refused_port: int, checkout: Path, tmp_path: Path) -> None:
    """Methods that need Modal raise BackendUnavailable."""
    outcomes = check_methods(modal_case(kind, refused_port, tmp_path), modal_run, checkout)

    for name in ("run", "arun", "submit", "asubmit", "ls", "push", "pull", "logs", "events", "wait", "result"):
        assert outcomes[name][0] == "BackendUnavailable", name


def test_refused_token(modal_run: str, checkout: Path, tmp_path: Path) -> None:
    """With a token that Modal refuses, commands that need Modal fail with a message that names ``modal setup``."""
    with LoopbackModal(tmp_path / "server") as server:
        server.faults.revoke_token()
        case = Case(env={**server.env(), "SKYRL_MODAL_BACKEND": "modal"})

        codes = check_commands(case, modal_run, checkout)
        outcomes = check_methods(case, modal_run, checkout)

    # ``map`` exits with 1 if none of its commands could be started.
    assert {name for name, code in codes.items() if code == LAUNCHER_ERROR} - {"map"} == NEEDS_MODAL
    for name in ("run", "ls", "push", "pull", "logs", "wait", "cancel"):
        assert "modal setup" in outcomes[name][-1], name


def test_working_modal(modal_run: str, checkout: Path, tmp_path: Path) -> None:
    """The same commands and methods succeed on a working server, so that the tests above test more than the script."""
    with LoopbackModal(tmp_path / "server") as server:
        case = Case(env={**server.env(), "SKYRL_MODAL_BACKEND": "modal"})

        codes = check_commands(case, modal_run, checkout)

    assert [codes[name] for name in ("run", "submit", "push", "ls", "doctor")] == [RUN_CODE, 0, 0, 0, 0]
