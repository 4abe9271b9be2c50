"""Writes what is generated from the settings: the tables in ``docs/cli.md``, and the JSON schema.

.. code-block:: bash

    python -m tests.docs.option_tables
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import click

from skyrl_modal import Launcher
from skyrl_modal.cli.base import VolumeCommand
from skyrl_modal.cli.commands import cli
from skyrl_modal.cli.launcher_options import launcher_options
from skyrl_modal.config.schema import SCHEMA_FILE, render
from skyrl_modal.config.settings import all_settings

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
#: Pages that describe an option further.
LINKS = {
    "--budget": "cost.md#budget",
    "--by": "cost.md",
    "--exclude": "mounting.md",
    "--fix": "checks.md#fix",
    "--include": "mounting.md",
    "--lease": "modal.md#lease",
    "--nodes": "nodes.md",
    "--profile": "configuration.md",
    "--rank": "kept-logs.md",
    "--rate": "cost.md",
    "--rdma": "nodes.md",
    "--stall": "runs.md#stall",
    "--start-deadline": "runs.md#start-deadline",
    "--strict": "checks.md#strict",
}
CONFIG_PAGE = PAGE.with_name("configuration.md")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by `python -m tests.docs.option_tables` -->\n", f"<!-- end of {name} -->\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _meaning(option: click.Option, text: str) -> str:
    link = LINKS.get(option.opts[0])
    return _cell(text) + (f" [More]({link})." if link else "")


def _form(option: click.Option) -> str:
    """Return an option as it is written, such as ``--nodes NUMBER``."""
    names = [*option.opts, *option.secondary_opts]
    metavar = "" if option.is_flag else f" {option.make_metavar(click.Context(cli))}"
    return ", ".join(f"`{name}{metavar if name.startswith('--') else ''}`" for name in names)


def launcher_table() -> str:
    """Return the table of the options for the settings."""
    lines = []
    sections: dict[str, list[str]] = {}
    for option in launcher_options():
        text, _, default = (option.help or "").partition(" Default: ")
        row = f"| {_cell(_form(option))} | {_cell(default).rstrip('.')} | {_meaning(option, text)} |"
        sections.setdefault(getattr(option, "section", "Configuration"), []).append(row)
    for section, rows in sections.items():
        lines += [f"**{section}**", "", "| option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def command_table() -> str:
    """Return the table of the options of single commands."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, command in sorted(cli.commands.items()):
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                rows.setdefault((_form(parameter), _meaning(parameter, parameter.help or "")), []).append(f"`{name}`")
    table = [f"| {_cell(form)} | {', '.join(names)} | {text} |" for (form, text), names in sorted(rows.items())]
    return "\n".join(["| option | command | meaning |", "|---|---|---|", *table, ""])


def settings_table() -> str:
    """Return the table of the keys of configuration files."""
    rows = [
        f"| `{key}` | {_cell(setting.default_text)} | {_cell(setting.option.help)} |"
        for key, setting in all_settings(Launcher).items()
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows, ""])


def volume_options() -> str:
    """Return the options of the commands about volumes."""
    return ", ".join(f"`{option.opts[0]}`" for option in launcher_options(VolumeCommand.settings))


def render_page(page: Path, parts: Mapping[str, str]) -> str:
    """Return a page with its generated parts."""
    text = page.read_text(encoding="utf-8")
    for name, content in parts.items():
        begin, end = _marks(name)
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        assert pattern.search(text), f"{page.name} has no part {name}"
        text = pattern.sub(lambda _, content=content, begin=begin, end=end: f"{begin}\n{content}\n{end}", text)
    return text


def pages() -> dict[Path, str]:
    """Return the content of each file that is generated, or has generated parts."""
    return {
        PAGE: render_page(PAGE, {"options": launcher_table(), "command options": command_table()}),
        CONFIG_PAGE: render_page(CONFIG_PAGE, {"settings": settings_table()}),
        SCHEMA_FILE: render(all_settings(Launcher)),
    }


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
