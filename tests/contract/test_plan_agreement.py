"""``plan``, ``run`` and ``submit`` agree on declarations: they refuse the same ones, with the same error."""

from __future__ import annotations

import contextlib
import io
import json
import math
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from skyrl_modal import BucketSpec, ImageSpec, Launcher, MountSpec, RaySpec, RunState, SecretSpec, SpecError, VolumeSpec
from skyrl_modal.cli.process import run_process
from skyrl_modal.errors import SkyRLModalError
from skyrl_modal.findings import Severity
from skyrl_modal.prepare.plan import Plan
from skyrl_modal.run.handle import Run
from skyrl_modal.run.index import RunIndex
from skyrl_modal.user_folders import data_folder
from tests.support.declarations import (
    DECLARATIONS,
    LOCAL,
    MODAL,
    SECRET_NAME,
    SECRET_VALUE,
    Declaration,
    write_files,
)
from tests.support.loopback import LoopbackModal

#: Every n-th declaration is tested in each test run, and the others as slow tests.
_STEP = 16
#: The requests with which a run on Modal begins.
_STARTS = {"AppCreate", "AppGetOrCreate", "FunctionCreate", "FunctionMap", "FunctionPutInputs", "ImageGetOrCreate"}
#: The requests that find out whether something exists. Those about earlier runs may still be sent in the background.
_QUESTIONS = {"ClientHello", "SecretGetOrCreate", "VolumeGetOrCreate", "VolumeListFiles2"}
_SPECS = {"volumes": VolumeSpec, "mounts": MountSpec}
#: The fields that are passed as options. The others are written to the user's configuration file.
_OPTIONS = {
    "backend": "--backend",
    "checkout": "--checkout",
    "gpu": "--gpu",
    "name": "--name",
    "nodes": "--nodes",
    "timeout": "--timeout",
    "workdir": "--workdir",
}


@attrs.frozen(kw_only=True)
class Refusal:
    """An error, as a caller sees it."""

    kind: str
    text: str
    facts: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a checkout and the files that the declarations name."""
    folder = tmp_path_factory.mktemp("declarations")
    checkout = folder / "SkyRL"
    for name, text in {
        "skyrl-gym/skyrl_gym/__init__.py": "",
        "skyrl/__init__.py": "",
        "train.py": "print('training')\n",
        "pyproject.toml": '[project]\nname = "skyrl"\nversion = "0"\ndependencies = ["ray==2.51.1"]\n',
        ".gitignore": "*.secret\n",
        "ignored.secret": "excluded\n",
    }.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    write_files(folder)
    return folder


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use an index, volumes and a configuration of the test's own, and define the secret."""
    for name in ("STATE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setenv(SECRET_NAME, SECRET_VALUE)
    monkeypatch.delenv("NOT_DEFINED_ANYWHERE", raising=False)


def formatted(value: Any, folder: Path) -> Any:
    """Return a value with the folder of the files in its texts."""
    if isinstance(value, str):
        return value.replace("{folder}", str(folder))
    if isinstance(value, Mapping):
        return {key: formatted(item, folder) for key, item in value.items()}
    return [formatted(item, folder) for item in value] if isinstance(value, list) else value


def make_launcher(fields: Mapping[str, Any]) -> Launcher:
    """Return the launcher with the declared fields, in which dicts stand for specs."""
    given = dict(fields)
    for name, cls in _SPECS.items():
        if name in given:
            given[name] = [cls(**item) for item in given[name]]
    given["volumes"] += [BucketSpec(**item) for item in given.pop("buckets", ())]
    if given.get("ray") is not None:
        given["ray"] = RaySpec(**given["ray"])
    if "image" in given:
        given["image"] = ImageSpec(**given["image"])
    if "secrets" in given:
        given["secrets"] = [SecretSpec(**item) if isinstance(item, dict) else item for item in given["secrets"]]
    return Launcher(**given)


def refusal_of(error: SkyRLModalError) -> Refusal:
    """Return an error, as a caller sees it."""
    facts = (error.field, repr(error.value), error.remedy, error.source) if isinstance(error, SpecError) else ()
    return Refusal(kind=type(error).__name__, text=str(error), facts=facts)


def attempt(function: Callable[[], Any]) -> Any:
    """Return the result of a function, or the error that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function()
        except SkyRLModalError as error:
            return refusal_of(error)


def call(*arguments: str) -> tuple[int, str, str]:
    """Call the command line in this process. Return its exit code and what it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["skyrl-modal", *arguments])
        code = run_process()
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]  # BytesIO
    return code, texts[0], texts[1]


def to_toml(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else json.dumps(value)


def shell_arguments(fields: Mapping[str, Any], command: Any, folder: Path) -> Sequence[str] | None:
    """Write the user's configuration file for a declaration, and return the further arguments of the command line.

    Returns:
        None if no command line can express the declaration.
    """
    given = {key: value for key, value in fields.items() if value is not None}
    given.setdefault("gpu", "none")
    if fields["ray"] is None:
        given["ray"] = False
    options = []
    for key, option in _OPTIONS.items():
        value = given.pop(key, None)
        if value is not None:
            options += [option, ",".join(value) if isinstance(value, list) else str(value)]
    parts = command if isinstance(command, list) else [command]
    if not parts or not all(isinstance(part, str) for part in parts) or isinstance(fields["gpu"], int):
        return None
    arguments = [*options, "--", *parts]
    text = "".join(f"{key} = {to_toml(value)}\n" for key, value in given.items())
    if (
        "steps" in given.get("image", {})
        or any("\0" in part or not part.isprintable() for part in arguments)
        or "\\ud" in text
        or "null" in text
    ):
        return None
    path = folder / "CONFIG" / "skyrl_modal" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return arguments


def started_locally() -> list[str]:
    """Return what a run on this machine leaves: records in the index, and folders of runs on volumes."""
    runs = (data_folder() / "volumes").glob("*/.skyrl_modal/runs/*")
    return [record.job.run_id for record in RunIndex().newest_first()] + [path.name for path in runs]


@contextlib.contextmanager
def nothing_started(server: LoopbackModal | None, *, no_request: bool = False) -> Iterator[None]:
    """Check that no run, and on Modal no app or function, is started in the ``with`` block."""
    seen = 0 if server is None else len(server.calls(container=False))
    yield
    assert started_locally() == []
    if server is not None:
        names = [request.name for request in server.calls(container=False)[seen:]]
        assert not _STARTS & set(names)
        assert not no_request or not _QUESTIONS & set(names)


def _id(declaration: Declaration) -> str:
    fields = "-".join(declaration.fields) or str(declaration.command)[:20]
    return f"{declaration.kind}-{fields}".encode("ascii", "replace").decode().replace("\0", "0")


_PARAMETERS = [
    pytest.param(each, id=_id(each), marks=[] if number % _STEP == 0 else [pytest.mark.slow])
    for number, each in enumerate(DECLARATIONS)
]


def test_number_and_kinds_of_declarations() -> None:
    """There are 200 declarations, of which 80 of 20 kinds are invalid on each backend."""
    assert len(DECLARATIONS) >= 200
    for backend in (LOCAL, MODAL):
        refused = [each for each in DECLARATIONS if backend in each.refused and " and " not in each.kind]
        assert len(refused) >= 80
        assert len({each.kind for each in refused}) >= 20


@pytest.mark.parametrize("declaration", _PARAMETERS)
def test_plan_and_run_agree(
    backend: str,
    declaration: Declaration,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """What a plan refuses is refused by runs, with the same error, and nothing is started. All else is started."""
    server = request.getfixturevalue("shared_loopback") if backend == MODAL else None
    monkeypatch.chdir(files / declaration.folder)
    volume = {"name": f"test-{uuid.uuid4().hex[:12]}"}
    fields = {"backend": backend, "ray": None, "gpu": None, "volumes": [volume]}
    fields |= formatted(declaration.fields, files)
    check = declaration.needs_server and backend == MODAL
    arguments = shell_arguments(fields, declaration.command, tmp_path)

    with nothing_started(server, no_request=not check):
        planned = attempt(lambda: make_launcher(fields).plan(declaration.command, check=check))
        in_shell = arguments and call("plan", *(["--check"] if check else []), *arguments)

    if backend in declaration.refused:
        refuse_alike(declaration, fields, planned, in_shell, arguments, server)
    else:
        assert isinstance(planned, Plan)
        assert in_shell is None or in_shell[0] == 0, in_shell
        start(declaration, fields, planned, server)


def refuse_alike(
    declaration: Declaration,
    fields: Mapping[str, Any],
    planned: Any,
    in_shell: tuple[int, str, str] | None,
    arguments: Sequence[str] | None,
    server: LoopbackModal | None,
) -> None:
    """Check that run and submit refuse what a plan has refused, in Python and in a shell."""
    with nothing_started(server):
        results = []
        if not declaration.only_shell:
            results = [
                attempt(lambda: make_launcher(fields).run(declaration.command, quiet=True, output=io.BytesIO())),
                attempt(lambda: make_launcher(fields).submit(declaration.command)),
            ]
        if declaration.finding:
            [finding] = [each for each in planned.findings if each.code == declaration.finding]
            assert finding.severity is Severity.ERROR
            assert [each.facts[2] for each in results] == [str(finding)] * 2
            return
        if not declaration.only_shell:
            assert isinstance(planned, Refusal)
            assert results == [planned, planned]
        if arguments is not None and in_shell is not None:
            code, output, error = in_shell
            assert code in (2, 125)
            assert (output, error != "") == ("", True)
            for name in ("run", "submit"):
                other = call(name, *arguments)
                assert other[:2] == (code, output)
                expected = error.replace("skyrl-modal plan", f"skyrl-modal {name}")
                # A run shows its plan before it asks Modal's servers.
                assert other[2].endswith(expected) if declaration.needs_server else other[2] == expected


def start(declaration: Declaration, fields: Mapping[str, Any], planned: Plan, server: LoopbackModal | None) -> None:
    """Check that a run is started, with the warnings of its plan, and that ``strict`` refuses its errors."""
    errors = [finding for finding in planned.findings if finding.severity is Severity.ERROR]
    if errors:
        with nothing_started(server):
            refused = attempt(lambda: make_launcher(fields).run(declaration.command, strict=True, quiet=True))
        assert isinstance(refused, Refusal)
        assert all(f"[{finding.code}] {finding}" in refused.text for finding in errors)
    messages = io.StringIO()
    with contextlib.redirect_stderr(messages):
        result = attempt(lambda: make_launcher(fields).run(declaration.command, output=io.BytesIO()))
    assert not isinstance(result, Refusal), result
    assert result.state in (RunState.SUCCEEDED, RunState.FAILED), result
    shown = messages.getvalue()
    for warning in planned.warnings:
        assert warning.splitlines()[0][:60] in shown
    assert Run.attach(result.run_id).state is result.state


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("SKYRL_MODAL_NOTIFY", "no-url", "notify"),
        ("SKYRL_MODAL_CONFIRM_ABOVE", "-1", "-1"),
        ("SKYRL_MODAL_PROFILE", "none-such", "no such profile"),
        ("MODAL_GPU", "A100:0", "$MODAL_GPU=A100:0"),
        ("MODAL_APP_NAME", "two names", "$MODAL_APP_NAME='two names'"),
    ],
)
def test_variables_of_the_user(
    variable: str, value: str, named: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invalid variable is refused alike by plan and run, also one that only runs use."""
    monkeypatch.chdir(files / "SkyRL")
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", LOCAL)
    monkeypatch.setenv(variable, value)

    planned, run = (call(name, "--no-ray", "true") for name in ("plan", "run"))

    assert planned == run
    assert planned[0] == 125
    assert named.lower() in planned[2].lower()


def test_unknown_key_of_the_user(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown key in the user's own file is refused with the nearest one, in processes of their own."""
    path = tmp_path / "CONFIG" / "skyrl_modal" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text('gpus = "L4"\n')
    monkeypatch.chdir(files / "SkyRL")

    planned, run = (
        subprocess.run([sys.executable, "-m", "skyrl_modal", name, "true"], capture_output=True, text=True, check=False)
        for name in ("plan", "run")
    )

    assert (planned.returncode, planned.stdout, planned.stderr) == (run.returncode, run.stdout, run.stderr)
    assert planned.returncode == 125
    assert "Did you mean gpu?" in planned.stderr
