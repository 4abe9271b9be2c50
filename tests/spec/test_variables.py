"""Tests of declared variables: names that the run sets, and sizes that the system permits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import ImageSpec, Launcher, MountSpec, RaySpec, SecretSpec, SpecError
from skyrl_modal.prepare.command import MAX_COMMAND_BYTES, normalize_command
from skyrl_modal.prepare.secret_values import read_secret_values
from skyrl_modal.spec.variables import MAX_ENVIRONMENT_BYTES, MAX_VARIABLE_BYTES

#: Variables that every run sets.
ALWAYS_SET = (
    "SKYRL_RUN_ID",
    "SKYRL_ATTEMPT",
    "SKYRL_MODAL_RUN_FOLDER",
    "SKYRL_MODAL_SECRETS",
    "SKYRL_MODAL_STARTED_AT",
    "NUM_GPUS",
    "NUM_NODES",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PYTHONUNBUFFERED",
)
OF_RAY = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def declare(field: str, name: str, **fields: Any) -> Launcher:
    """Return a launcher that declares a variable in a field."""
    made: dict[str, Any] = {
        "env": {"env": {name: "hunter2"}},
        "ray.env": {"ray": RaySpec(env={name: "hunter2"})},
        "image.env": {"image": ImageSpec(env={name: "hunter2"})},
        "secrets": {"secrets": [name]},
        "optional secrets": {"secrets": [SecretSpec(name, source="environment", optional=True)]},
        "keys": {"secrets": [SecretSpec("stored", keys=["OTHER", name])]},
    }[field]
    return Launcher(**{"backend": "local", **made, **fields})


@pytest.mark.parametrize("field", ["env", "ray.env", "image.env", "secrets", "optional secrets", "keys"])
@pytest.mark.parametrize("name", [*ALWAYS_SET, *OF_RAY, "SKYRL_REPO_ROOT", "SKYRL_DATA"])
def test_variable_of_the_run_is_refused(field: str, name: str) -> None:
    """A variable that the run sets cannot be declared. The error names it, has no value, and states what to do."""
    with pytest.raises(SpecError) as caught:
        declare(field, name)

    assert (caught.value.field, caught.value.value) == ("secrets" if "sec" in field or field == "keys" else field, name)
    assert caught.value.remedy
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("field", ["env", "image.env", "secrets", "keys"])
@pytest.mark.parametrize("name", OF_RAY)
def test_variable_of_ray_without_ray(field: str, name: str) -> None:
    """A run without Ray sets no variable of Ray, so it is the caller's."""
    assert declare(field, name, ray=None).ray is None


@pytest.mark.parametrize(("name", "fields"), [("SKYRL_REPO_ROOT", {"mounts": []}), ("SKYRL_DATA", {"volumes": []})])
def test_variable_of_a_folder_that_is_not_there(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """The variable of the checkout, or of the volume, is the caller's if the run has none."""
    assert declare("env", name, **fields).env == {name: "hunter2"}
    if name == "SKYRL_REPO_ROOT":
        other = MountSpec(local_path=tmp_path, remote_path="/root/other")
        assert declare("env", name, mounts=[other]).env == {name: "hunter2"}


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "PYTHONPATH",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "RAY_DEDUP_LOGS",
        "SKYRL_DUMP_INFRA_LOG_TO_STDOUT",
    ],
)
def test_other_variables_are_accepted(name: str) -> None:
    """Variables that the run completes, and those that it does not set, are the caller's."""
    for field in ("env", "ray.env", "image.env", "secrets", "keys"):
        declare(field, name)


def test_equal_value_is_accepted() -> None:
    """PYTHONUNBUFFERED=1 is what the run sets."""
    assert Launcher(backend="local", env={"PYTHONUNBUFFERED": "1"}).env == {"PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize("option", ["--env", "--secret", "--secret-if-set"])
def test_options_of_the_command_line(option: str) -> None:
    """The options are refused as the fields are, before anything starts."""
    value = "NUM_GPUS=8" if option == "--env" else "NUM_GPUS"
    argv = [sys.executable, "-m", "skyrl_modal", "run", "--backend", "local", option, value, "true"]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (125, "")
    assert "NUM_GPUS" in done.stderr
    assert "Traceback" not in done.stderr


def test_largest_variable() -> None:
    """A variable may have as many bytes as Linux permits, with its name; one more is refused, and is not shown."""
    largest = MAX_VARIABLE_BYTES - len("A=") - 1
    made: tuple[Any, ...] = (Launcher, ImageSpec, RaySpec)
    for spec in made:
        assert spec(env={"A": "x" * largest}).env
        with pytest.raises(SpecError) as caught:
            spec(env={"A": "x" * (largest + 1)})
        assert (caught.value.field, caught.value.value) == ("env", "A")
        assert len(str(caught.value)) < 400
    with pytest.raises(SpecError, match="131,073 bytes"):
        Launcher(env={"A": "é" * (largest // 2 + 1)})


def test_all_variables_together() -> None:
    """Variables that do not fit into one environment are refused together, wherever they are declared."""
    values = {f"V{number}": "x" * 100_000 for number in range(MAX_ENVIRONMENT_BYTES // 100_000)}
    with pytest.raises(SpecError, match=r"env='2,0\d\d,\d\d\d bytes'"):
        Launcher(env=values)
    half = dict(list(values.items())[:10])
    other = {f"O{name}": value for name, value in half.items()}
    assert Launcher(env=half)
    with pytest.raises(SpecError, match="bytes"):
        Launcher(env=half, ray=RaySpec(env=other))
    # Pointers count too: many small variables are as large as a few large ones.
    with pytest.raises(SpecError, match="bytes"):
        Launcher(env={f"V{number}": "" for number in range(150_000)})


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_value_that_no_variable_can_have(value: str) -> None:
    """A null character, and half of a surrogate pair, are refused where they are declared."""
    with pytest.raises(SpecError, match="env='A'"):
        Launcher(env={"A": value})
    with pytest.raises(SpecError) as caught:
        normalize_command(f"echo {value}{'x' * 10_000_000}")
    assert caught.value.field == "command"
    assert len(str(caught.value)) < 3000


def test_command_that_no_record_can_contain() -> None:
    """A command of 10 MB is accepted. One that is too large for a record is refused, and is not shown."""
    assert normalize_command("x" * 10_000_000)
    for character in ("x", "\n", "é", "\U0001f600"):
        with pytest.raises(SpecError, match="24 MiB"):
            normalize_command("echo" + character * (MAX_COMMAND_BYTES // len(json.dumps(character)[1:-1]) + 1))


def test_secret_that_no_variable_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value in a .env file that is too large, or has a null character, is refused before the run starts."""
    monkeypatch.delenv("KEY", raising=False)
    for value in ("x" * MAX_VARIABLE_BYTES, "hunter2\0"):
        (tmp_path / ".env").write_text(f"KEY={value}\n")
        with pytest.raises(SpecError) as caught:
            read_secret_values(["KEY"], [tmp_path])
        assert (caught.value.field, caught.value.value) == ("secrets", "KEY")
        assert len(str(caught.value)) < 400
        assert "hunter2" not in str(caught.value)
