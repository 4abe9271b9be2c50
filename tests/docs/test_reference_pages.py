"""Tests that the pages on records, exit codes and variables are complete."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

import skyrl_modal
from skyrl_modal import Run, RunState
from skyrl_modal.cli.commands import cli
from skyrl_modal.protocol import exit_codes, run_folder
from skyrl_modal.protocol.tracker_variables import tracker_variables, wandb_variables
from skyrl_modal.spec.variables import variables_of_the_run
from tests.conftest import MakeLauncher
from tests.docs.page_blocks import ROOT
from tests.docs.record_tables import ENUMS, RECORDS, attributes_of, comments_of, pages

DOCS = ROOT / "docs"
PACKAGE = Path(skyrl_modal.__file__).parent


@pytest.fixture
def backend() -> str:
    """Return the backend of the runs of this file."""
    return "local"


def table_of(page: str, heading: str) -> dict[str, str]:
    """Return the rows of the first table below a heading: the second cell by each name in the first one."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"# {heading}\n")[2]
    assert text, f"{page} has no heading {heading}"
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in table[1].splitlines()]
    return {name: row[1] for row in cells for name in re.findall(r"`([^`]+)`", row[0])}


@pytest.mark.parametrize("page", [path.name for path in pages()])
def test_generated_tables_are_current(page: str) -> None:
    """The tables are those of the package: run ``python -m tests.docs.record_tables``."""
    assert (DOCS / page).read_text(encoding="utf-8") == pages()[DOCS / page]


def test_every_field_of_a_record_is_described() -> None:
    """Each record describes all of its fields, and no others, unless it refers to a declaration."""
    for cls in {cls for classes in RECORDS.values() for cls in classes}:
        described = attributes_of(cls)
        if described:
            assert set(described) == {field.name for field in fields(cls)}, cls.__name__
        else:
            assert "The fields are " in str(cls.__doc__), cls.__name__


def test_every_value_of_an_enum_is_described() -> None:
    """Each cause and each stop reason has a comment, which the page shows."""
    for cls in ENUMS.values():
        comments = comments_of(cls)
        assert set(comments) == {str(value) for value in cls}
        assert all(text for value, text in comments.items() if value != "unknown")


def test_every_state_and_exit_code_is_listed() -> None:
    """The page lists each state, and each exit code of the launcher."""
    assert set(table_of("exit-codes.md", "States")) == {str(state) for state in RunState}
    codes = {str(value) for name, value in vars(exit_codes).items() if name.isupper()}
    assert codes <= set(table_of("exit-codes.md", "Exit codes, states and causes"))


def test_files_of_a_run_are_listed(launcher: MakeLauncher) -> None:
    """A run writes no file that the page does not list, and the page lists all names of the package."""
    listed = {name.split("/")[0] for name in table_of("records.md", "Files of a run")}
    code = 'from skyrl_modal import log_metrics; log_metrics({"loss": 1.5}, step=3)'
    result = launcher(rate=1.0).run(["python3", "-c", code], quiet=True, check=True)

    assert {path.name for path in Path(result.log_path).parent.iterdir()} <= listed
    assert {value for name, value in vars(run_folder).items() if name.endswith("_FILE")} <= listed


def variables_read() -> Iterator[str]:
    """Yield the names of variables that the package reads, except for those of code that runs in the container."""
    for file in PACKAGE.rglob("*.py"):
        if not {"container", "hook"} & set(file.relative_to(PACKAGE).parts):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                match node:
                    case ast.Subscript(value=owner, slice=ast.Constant(value=str(name)), ctx=ast.Load()):
                        is_environment = ast.unparse(owner).endswith("environ")
                    case ast.Call(
                        func=ast.Attribute(value=owner, attr="get"), args=[ast.Constant(value=str(name)), *_]
                    ):
                        is_environment = ast.unparse(owner).endswith("environ")
                    case ast.Constant(value=str(name)):
                        is_environment = re.fullmatch(r"SKYRL_MODAL_[A-Z_]+", name) is not None
                    case _:
                        continue
                if is_environment:
                    yield name


def test_variables_of_the_caller_are_listed() -> None:
    """The page lists each variable that the package reads, and the package contains each that is listed as its own."""
    listed = {
        **table_of("variables.md", "Variables of the caller"),
        **table_of("variables.md", "Variables of the command"),
    }
    read = set(variables_read())

    assert len(read) > 15
    assert read <= set(listed)
    sources = "".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    for name in listed:
        if name.startswith(("SKYRL_", "XDG_", "GIT_")):
            assert name in sources, name


def test_variables_of_the_command_are_listed(launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run sets no variable that the page does not list."""
    listed = set(table_of("variables.md", "Variables of the command"))
    output: list[bytes] = []
    monkeypatch.setenv("CALLER_ONLY", "1")
    result = launcher(stall="1h").run("env", output=output.append, quiet=True, check=True)
    names = {line.partition("=")[0] for line in b"".join(output).decode().splitlines() if "=" in line}

    assert result.state == "succeeded"
    assert {"CALLER_ONLY", "SKYRL_RUN_ID"} <= names
    new = {name for name in names if re.fullmatch(r"[A-Z_]+", name)} - set(os.environ)
    assert new - {"SHLVL", "PWD", "OLDPWD", "_"} <= listed
    declared = variables_of_the_run(has_ray=True, has_checkout=True, has_volume=True)
    assert {*declared, *tracker_variables("/x"), *wandb_variables("x")} - listed == {"RAY_AUTH_TOKEN_PATH"}


#: The arguments with which each command prints JSON about a run, without those that start processes of their own.
ON_VOLUME = ("--backend", "local", "--volume", "/root/data=VOLUME")
CALLS = {
    "ps": ["ps"],
    "plan": ["plan", "--backend", "local", "true"],
    "why": ["why", "latest"],
    "cost": ["cost"],
    "cost --by": ["cost", "--by", "day"],
    "metrics": ["metrics", "latest"],
    "config": ["config"],
    "doctor": ["doctor"],
    "ls": ["ls", *ON_VOLUME, "/root/data/.skyrl_modal/runs"],
    "du": ["du", *ON_VOLUME, "/root/data"],
    "pull --dry-run": ["pull", "--dry-run", *ON_VOLUME, "/root/data/.skyrl_modal", "x"],
    "push --dry-run": ["push", "--dry-run", *ON_VOLUME, "train.py", "/root/data/"],
}


def test_json_of_commands_is_listed(
    launcher: MakeLauncher, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page lists each command with ``--json``, and each key that it prints about a failed run."""
    page = table_of("records.md", "JSON of commands")
    with_json = {
        name for name, command in cli.commands.items() if any("--json" in each.opts for each in command.params)
    }
    assert {name.split()[0] for name in page} == with_json

    monkeypatch.chdir(checkout)
    code = 'from skyrl_modal import log_metrics; log_metrics({"loss": 1.5}, step=3); exit(3)'
    made = launcher()
    run = Run.attach(made.run(["python3", "-c", code], quiet=True).run_id)
    text = (DOCS / "records.md").read_text(encoding="utf-8").partition("## JSON of commands")[2]
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| `")}
    for name, arguments in CALLS.items():
        capsys.readouterr()
        filled = [argument.replace("VOLUME", made.volumes[0].name) for argument in arguments]
        with contextlib.suppress(click.exceptions.Exit, SystemExit):  # of doctor, if something is missing here
            cli.main([*filled[:1], "--json", *filled[1:]], standalone_mode=False)
        value = json.loads(capsys.readouterr().out)
        [row] = [row for first, row in rows.items() if f"`{name}`" in first]
        printed = value[0] if isinstance(value, list) else value
        assert printed, name
        unlisted = {key for key in printed if f"`{key}`" not in row} - ({"loss"} if name == "metrics" else set())
        assert not unlisted, f"{name}: {unlisted}"
    assert run.state is RunState.FAILED
