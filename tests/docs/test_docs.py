"""What the documentation shows works: docstring examples, Python blocks, commands, their options, names and links."""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

import skyrl_modal
from skyrl_modal.cli import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: The quickstart's block is an excerpt of examples/quickstart.py, which has tests of its own.
EXCERPTS = {"quickstart.md"}

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(skyrl_modal.__path__, "skyrl_modal.")
    if not name.endswith("__main__") and not name.endswith("ray_probe")
]


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in one of the languages, each with its line number."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```({'|'.join(languages)})\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 2, match.group(2)) for match in found]


def shell_lines() -> list[tuple[str, list[str]]]:
    """Every call of skyrl-modal in a shell block: where it stands, and its words."""
    lines = []
    for page in PAGES:
        for start, block in blocks(page, "bash", "sh", "console"):
            for number, line in enumerate(block.replace("\\\n", "  ").splitlines(), start):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and Path(words[0]).name == "skyrl-modal":
                    lines.append((f"{page.name}:{number}", words[1:]))
    return lines


@pytest.mark.parametrize("name", ["skyrl_modal", *MODULES])
def test_the_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))

    assert result.failed == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in EXCERPTS and blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page: Path, checkout: Path) -> None:
    blank = [""] * page.read_text(encoding="utf-8").count("\n")
    for start, block in blocks(page, "python"):
        lines = block.splitlines()
        blank[start - 1 : start - 1 + len(lines)] = lines  # errors then name the page's own line
    (checkout / "lib").mkdir()
    (checkout / "lib" / "util.py").touch()  # a page asks why it stays
    script = checkout.parent / page.name
    script.write_text("\n".join(blank), encoding="utf-8")
    ast.parse(script.read_text(encoding="utf-8"), page.name)

    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=checkout,
        env={**os.environ, "SKYRL_MODAL_BACKEND": "local", "HOME": str(checkout.parent)},  # it is ~/SkyRL
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for _, block in blocks(page, "python"):
        for shown in re.findall(r"launcher\.run\(.*\)  # [\w ]*: (\S+)$", block, re.MULTILINE):
            assert shown in done.stdout


@pytest.mark.parametrize(("where", "words"), shell_lines(), ids=[where for where, _ in shell_lines()])
def test_a_command_line_that_is_shown_is_one(where: str, words: list[str]) -> None:
    options = [word for word in words if word.startswith("-")]
    if set(words) & {"--help", "-h", "--version"}:
        assert options
        return

    name, command, rest = cli.resolve_command(click.Context(cli), words)

    assert command is not None
    command.make_context(name, rest)  # raises what the user would see


def documented_options() -> set[str]:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `-")]
    return {option for row in rows for option in re.findall(r"`(--?[a-z-]+)", row)}


def existing_options() -> set[str]:
    found: set[str] = set()
    for command in cli.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def test_every_option_is_documented_and_every_documented_option_exists() -> None:
    assert documented_options() == existing_options()


def test_every_option_that_any_page_names_exists() -> None:
    known = existing_options() | {"--help", "--version"}
    for page in PAGES:
        for code in re.findall(r"`(skyrl-modal [^`]*|--[a-z-]+[^`]*)`", page.read_text(encoding="utf-8")):
            named = set(re.findall(r"(?<!\S)--[a-z-]+", code.split(" -- ")[0]))
            if code.startswith("--") and page.name in EXCERPTS:
                continue  # the quickstart's own options
            assert named <= known, f"{page.name}: {code}"


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| `[a-z]+[ `]", line)]

    assert {re.findall(r"`([a-z]+)", row)[0] for row in rows} == set(cli.commands)


def test_every_public_name_is_in_the_reference_and_says_what_it_is() -> None:
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in skyrl_modal.__all__:
        value = getattr(skyrl_modal, name)
        # All of the errors' module is shown on a page of its own.
        assert f":: skyrl_modal.{name}\n" in reference or value.__module__ == "skyrl_modal.errors", name
        assert value.__doc__, name


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import skyrl_modal; "
        "print({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names, "
        "[name for name in sys.modules if name.startswith('skyrl_modal.')])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "{'skyrl_modal'} []"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


def test_the_version_is_said_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
