"""Tests of reading secrets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from skyrl_modal import ImageSpec, Launcher, MountSpec, RaySpec, SecretSpec, SpecError, VolumeSpec
from skyrl_modal.findings import Severity
from skyrl_modal.prepare.secret_values import find_repeated_values, read_secret_values


def test_environment_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment takes precedence over .env files, and the first folder over the second."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".env").write_text(f"A={name}\nB={name}\n{name.upper()}='$A {name}'\n")
    monkeypatch.setenv("A", "environment")

    values = read_secret_values(["A", "B", "SECOND"], [tmp_path / "first", tmp_path / "second"])

    assert values == {"A": "environment", "B": "first", "SECOND": "$A second"}


def test_missing_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable without a value raises SpecError, which contains no value of another."""
    (tmp_path / ".env").write_text("A=hunter2\n")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)

    with pytest.raises(SpecError) as caught:
        read_secret_values(["A", "NO_SUCH_KEY"], [tmp_path, tmp_path / "none"])

    assert (caught.value.field, caught.value.value) == ("secrets", "NO_SUCH_KEY")
    assert str(tmp_path / ".env") in caught.value.remedy
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("KEY=${FROM_ENVIRONMENT}-x", "outside-x"),
        ("KEY=${FIRST}-x", "inside-x"),
        ("KEY=${UNDEFINED}x", "x"),
        ("KEY=${UNDEFINED:-other}", "other"),
        ('KEY="${FIRST}"', "inside"),
        ("KEY=pa$word", "pa$word"),
        ("KEY=$(touch marker)", "$(touch marker)"),
        ("KEY=`touch marker`", "`touch marker`"),
        ("export KEY='a b'", "a b"),
        ('KEY="a\\nb"', "a\nb"),
        ('KEY="-----BEGIN\nsecond\n"', "-----BEGIN\nsecond\n"),
    ],
)
def test_dotenv_values_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, value: str) -> None:
    """Variables in braces are replaced as python-dotenv documents, and no command is executed."""
    monkeypatch.setenv("FROM_ENVIRONMENT", "outside")
    monkeypatch.delenv("UNDEFINED", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"FIRST=inside\n{line}\n")

    assert read_secret_values(["KEY"], [tmp_path]) == {"KEY": value}
    assert not (tmp_path / "marker").exists()


def test_optional_secret_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional variable that is not defined has no value, and another one does."""
    monkeypatch.setenv("GIVEN", "value")
    monkeypatch.delenv("ABSENT", raising=False)

    assert read_secret_values(["GIVEN", "ABSENT"], [tmp_path], optional=["ABSENT", "GIVEN"]) == {"GIVEN": "value"}


VALUE = "0123456789abcdef"


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("command", {}),
        ("env['A']", {"env": {"A": f"x{VALUE}"}}),
        ("ray.env['B']", {"ray": RaySpec(env={"B": VALUE})}),
        ("image.env['C']", {"image": ImageSpec(env={"C": VALUE})}),
        ("image.pip", {"image": ImageSpec(pip=[f"x @ https://{VALUE}@example.invalid/x.whl"])}),
        ("tags", {"tags": ["a", VALUE]}),
        ("name", {"name": VALUE}),
        ("workdir", {"workdir": f"a/{VALUE}"}),
        ("app_name", {"app_name": VALUE}),
        ("volumes.name", {"volumes": [VolumeSpec(name=VALUE)]}),
        ("mounts.exclude", {"mounts": [MountSpec(exclude=[VALUE])]}),
    ],
)
def test_a_value_in_a_field_is_refused(field: str, fields: dict[str, Any]) -> None:
    """The error names the field, the variable and secrets=, and contains no value."""
    launcher = Launcher(backend="local", **fields)
    command = f"wandb login {VALUE}" if field == "command" else "wandb login"

    with pytest.raises(SpecError) as caught:
        list(find_repeated_values(launcher, command, {"KEY": f"{VALUE}\n"}))

    assert caught.value.field == field
    assert "$KEY" in caught.value.remedy
    assert "secrets=" in caught.value.remedy
    assert VALUE not in str(caught.value)


def test_a_short_value_in_a_field_is_a_warning() -> None:
    """A value of fewer than 8 characters may be there by accident. Names of secrets are not searched."""
    launcher = Launcher(backend="local", env={"A": "hunter2"}, secrets=["KEY", "NO_VALUE", "hunter2"])

    (finding,) = find_repeated_values(launcher, "echo hunter2", {"KEY": "hunter2", "NO_VALUE": ""})

    assert (finding.code, finding.severity) == ("secret-value-repeated", Severity.WARNING)
    assert "hunter2" not in str(finding)
    assert "command, env['A']" in str(finding)


def test_plan_refuses_a_value(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is refused as its run would be: a secret that is not defined, or the value of one in the command."""
    monkeypatch.setenv("KEY", VALUE)
    monkeypatch.delenv("ABSENT", raising=False)
    launcher = Launcher(backend="local", checkout=checkout, secrets=["KEY"])

    assert launcher.plan("echo $KEY").job.secret_names == ("KEY",)
    with pytest.raises(SpecError, match="ABSENT"):
        evolve(launcher, secrets=["ABSENT"]).plan("true")
    with pytest.raises(SpecError, match="command='"):
        launcher.plan(["echo", VALUE])


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"source": "file"}, "source"),
        ({"optional": "yes"}, "optional"),
        ({"source": "environment", "keys": ["A"]}, "keys"),
    ],
)
def test_invalid_secret_spec(fields: dict[str, Any], field: str) -> None:
    """An invalid field is refused."""
    with pytest.raises(SpecError) as caught:
        SecretSpec("KEY", **fields)
    assert caught.value.field == field


def test_variable_name_with_a_value_is_not_repeated() -> None:
    """Text that is not a variable's name may be a value, and is not part of the error."""
    with pytest.raises(SpecError) as caught:
        SecretSpec("sk-0123456789", source="environment")
    assert "0123456789" not in str(caught.value)


def test_sources_of_secrets() -> None:
    """A string and a variable are read here; a name that is also required is not optional."""
    variable = SecretSpec("B", source="environment", optional=True)
    again = SecretSpec("A", source="environment", optional=True)
    launcher = Launcher(backend="local", secrets=["A", variable, again, SecretSpec("stored", optional=True)])

    assert launcher.secret_variables == ("A", "B", "A")
    assert launcher.optional_variables == ("B",)
    assert [secret.name for secret in launcher.named_secrets] == ["stored"]


@pytest.mark.parametrize("kind", ["named pipe", "sparse file", "device"])
def test_env_file_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A .env file that is no regular file, or is too large, is an error that names it; a set variable needs no file."""
    path = tmp_path / ".env"
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(10_000_000_000)
    with pytest.raises(SpecError, match=r"\.env cannot be read"):
        read_secret_values(["NO_SUCH_KEY"], [tmp_path])
    monkeypatch.setenv("NO_SUCH_KEY", "value")
    assert read_secret_values(["NO_SUCH_KEY"], [tmp_path]) == {"NO_SUCH_KEY": "value"}
