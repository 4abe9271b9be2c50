"""Tests of the documentation: docstring examples, Python blocks, commands, options, names and links."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import itertools
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
from skyrl_modal.cli.commands import cli
from tests.docs.page_blocks import PAGES, ROOT, blocks_of

#: The block of the quickstart is an excerpt of examples/quickstart.py, which has its own tests.
EXCERPTS = {"quickstart.md"}

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(skyrl_modal.__path__, "skyrl_modal.")
    if not name.endswith(("__main__", "ray_probe"))
]


def shell_commands() -> list[tuple[str, list[str]]]:
    """Return every call of skyrl-modal in a shell block: its position, and its arguments."""
    lines = []
    for page in PAGES:
        for block in blocks_of(page, "bash", "console"):
            for number, line in enumerate(block.text.replace("\\\n", "  ").splitlines(), block.line):
                arguments = shlex.split(line.removeprefix("$ "), comments=True)
                for is_operator, part in itertools.groupby(arguments, lambda text: text in ("|", "||", "&&", ";")):
                    program, *rest = part
                    if not is_operator and Path(program).name == "skyrl-modal":
                        lines.append((f"{page.name}:{number}", rest))
    return lines


@pytest.mark.parametrize("name", ["skyrl_modal", *MODULES])
def test_docstring_examples_are_correct(name: str) -> None:
    """Every example in a docstring prints what it shows."""
    result = doctest.testmod(importlib.import_module(name))

    assert result.failed == 0


@pytest.mark.ray
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in EXCERPTS and blocks_of(page, "python")],
    ids=lambda page: page.name,
)
def test_python_blocks_of_a_page_run_in_order(page: Path, checkout: Path) -> None:
    """The Python blocks of a page run one after the other, and print what their comments show."""
    blank = [""] * page.read_text(encoding="utf-8").count("\n")
    for block in blocks_of(page, "python"):
        lines = block.text.splitlines()
        blank[block.line - 1 : block.line - 1 + len(lines)] = lines  # so that errors contain the line of the page
    (checkout / "lib").mkdir()
    (checkout / "lib" / "util.py").touch()  # mounting.md asks why this file is excluded
    script = checkout.parent / page.name
    script.write_text("\n".join(blank), encoding="utf-8")
    ast.parse(script.read_text(encoding="utf-8"), page.name)

    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=checkout,
        env={**os.environ, "SKYRL_MODAL_BACKEND": "local", "HOME": str(checkout.parent)},  # the checkout is ~/SkyRL
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    for block in blocks_of(page, "python"):
        for shown in re.findall(r"launcher\.run\(.*\)  # [\w ]*: (\S+)$", block.text, re.MULTILINE):
            assert shown in done.stdout
        for shown in re.findall(r"^print\(.*\)  # (failed \w+|\[[\d, ]+\])$", block.text, re.MULTILINE):
            assert shown in done.stdout


@pytest.mark.parametrize(("where", "arguments"), shell_commands(), ids=[where for where, _ in shell_commands()])
def test_shown_command_lines_are_valid(where: str, arguments: list[str]) -> None:
    """Every command line on a page is accepted by the command line's parser."""
    options = [argument for argument in arguments if argument.startswith("-")]
    if set(arguments) & {"--help", "-h", "--version"}:
        assert options
        return

    name, command, rest = cli.resolve_command(click.Context(cli), arguments)

    assert command is not None
    command.make_context(name, rest)  # raises the error that a user would see


def documented_options() -> set[str]:
    """Return the options in the tables of the page on the command line."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `-")]
    return {option for row in rows for option in re.findall(r"`(--?[a-z-]+)", row)}


def existing_options() -> set[str]:
    """Return the options of all commands, without those that only explain why they are refused."""
    found: set[str] = set()
    for command in cli.commands.values():
        for parameter in command.get_params(click.Context(command)):
            if isinstance(parameter, click.Option) and "--help" not in parameter.opts and not parameter.hidden:
                found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def test_options_and_documentation_agree() -> None:
    """Every option is documented, and every documented option exists."""
    assert documented_options() == existing_options()


def test_options_named_on_pages_exist() -> None:
    """Every option that any page names exists."""
    known = existing_options() | {"--help", "--version"}
    for page in PAGES:
        for code in re.findall(r"`(skyrl-modal [^`]*|--[a-z-]+[^`]*)`", page.read_text(encoding="utf-8")):
            named = set(re.findall(r"(?<!\S)--[a-z-]+", code.split(" -- ")[0]))
            if code.startswith("--") and page.name in {*EXCERPTS, "benchmarks.md", "CONTRIBUTING.md"}:
                continue  # the options of the quickstart, of the benchmarks and of tools
            assert named <= known, f"{page.name}: {code}"


def inline_code() -> list[tuple[str, str]]:
    """Return the code in the text of each page and of SKILL.md: the file, and the code."""
    files = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "SECURITY.md", "docs/generated/SKILL.md"))]
    found = []
    for file in files:
        text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        found += [(file.name, " ".join(code.split())) for code in re.findall(r"`([^`]+)`", text)]
    return found


def test_commands_named_in_text_have_their_options() -> None:
    """Each command that a text names exists, and has the options that are named with it."""
    count = 0
    for where, code in inline_code():
        match = re.match(r"skyrl-modal ([a-z]+)\b(.*)", code.split(" -- ")[0])
        if match:
            name, rest = match.groups()
            assert name in cli.commands, f"{where}: {code}"
            parameters = cli.commands[name].get_params(click.Context(cli))
            options = {flag for each in parameters for flag in (*each.opts, *each.secondary_opts)}
            named = set(re.findall(r"(?<=\s)--[a-z-]+", rest.split("'")[0].split('"')[0]))
            assert named <= {*options, "--help"}, f"{where}: {code}"
            count += 1
    assert count > 50


def names_of(owner: object) -> set[str]:
    """Return the names of the methods and attributes of a public class."""
    fields = {field for cls in getattr(owner, "__mro__", ()) for field in vars(cls).get("__annotations__", {})}
    return {*dir(owner), *fields, *re.findall(r"^        (\w+): ", owner.__doc__ or "", re.MULTILINE)}


def test_attributes_and_arguments_named_in_text_exist() -> None:
    """Each attribute and argument of a public class that a text names exists."""
    count = 0
    names = "|".join(sorted(skyrl_modal.__all__, key=len, reverse=True))
    for where, code in inline_code():
        if where == "CHANGELOG.md":
            continue  # it names what was removed
        for name, attribute in re.findall(rf"(?<![\w.])(?:skyrl_modal\.)?({names})\.([a-z]\w*)", code):
            if (where, name, attribute) != ("metrics.md", "Run", "log"):  # of W&B
                assert attribute in names_of(getattr(skyrl_modal, name)), f"{where}: {code}"
            count += 1
        for name, text in re.findall(rf"(?<![\w.])({names})\(((?:\w+=[^()]*)?)\)", code):
            known = set(inspect.signature(getattr(skyrl_modal, name)).parameters)
            assert set(re.findall(r"(?:^|, )(\w+)=", text)) <= known, f"{where}: {code}"
            count += 1
    assert count > 100


def test_every_command_is_documented() -> None:
    """The table of commands lists exactly the commands that exist."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| `[a-z]+[ `]", line)]

    assert {re.findall(r"`([a-z]+)", row)[0] for row in rows} == set(cli.commands)


def test_public_names_are_documented() -> None:
    """Every public name is in the API reference or on the page of errors, and has a docstring."""
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in skyrl_modal.__all__:
        value = getattr(skyrl_modal, name)
        # The page of errors documents all of its module.
        assert f":: skyrl_modal.{name}\n" in reference or value.__module__ == "skyrl_modal.errors", name
        assert value.__doc__, name


def test_import_of_package_loads_no_other_module() -> None:
    """Importing the package loads no module of it and no third-party package."""
    code = (
        "import sys; before = set(sys.modules); import skyrl_modal; "
        "print({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names, "
        "[name for name in sys.modules if name.startswith('skyrl_modal.')])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "{'skyrl_modal'} []"


def test_package_contains_type_marker() -> None:
    """The package contains py.typed. ``nox -s tests`` runs this on the built wheel."""
    assert (Path(skyrl_modal.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    "page",
    [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))],
    ids=lambda page: page.name,
)
def test_links_between_pages_are_valid(page: Path) -> None:
    """The target of every link to another page exists, and so does its heading or label."""
    for name, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if not name.startswith(("http:", "https:")):
            target = page.parent / name if name else page
            assert target.exists(), name
            assert not anchor or anchor in anchors(target), f"{name}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the labels and the anchors of the headings of a page."""
    text = page.read_text(encoding="utf-8")
    labels = re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {*labels, *(re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings)}


def test_named_tests_exist() -> None:
    """Every test that the page on assumptions names exists."""
    text = (ROOT / "docs" / "modal-assumptions.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", text)

    assert len(named) > 20
    for path, name in named:
        file = ROOT / "tests" / (path if "/" in path else f"contract/{path}")
        assert file.exists(), path
        assert not name or re.search(rf"^def {name}\b", file.read_text(encoding="utf-8"), re.MULTILINE), name


def test_version_is_the_same_everywhere() -> None:
    """The changelog has a section for the version of pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
