"""Commands about the configuration, and that of the shell: show it, and write its file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skyrl_modal.cli.base import LauncherCommand, cli
from skyrl_modal.cli.output import print_line, print_rows
from skyrl_modal.dataclass import replace
from skyrl_modal.errors import SpecError, StorageError
from skyrl_modal.views.text import StderrReporter

if TYPE_CHECKING:
    from skyrl_modal.config.resolve import Configuration


@cli.command(cls=LauncherCommand)
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.option("--schema", "is_schema", is_flag=True, help="Print the JSON schema of configuration files.")
def config(is_json: bool, is_schema: bool, **options: Any) -> None:
    """Show the value of each setting, and where it was set: option, variable, file or default.

    The options are those of run: they show which value a run with them would have.
    """
    from skyrl_modal.cli.launcher_options import configuration, launcher_of

    if is_schema:
        from skyrl_modal.config.schema import SCHEMA_FILE

        print_line(SCHEMA_FILE.read_text(encoding="utf-8").rstrip())
        return
    made = configuration(options)
    launcher_of(made)  # a value that a run would refuse is refused here
    if is_json:
        print_line(json.dumps(_to_json(made), indent=2))
    else:
        print_rows(("setting", "value", "set by"), _rows(made))
        for file in made.files:
            StderrReporter().info(f"read {file.path}")


def _rows(made: Configuration) -> list[tuple[str, str, str]]:
    from skyrl_modal.run.notify import describe_url

    rows = []
    for key, setting in made.known.items():
        found = {name: item for name, item in made.values.items() if name == key or name.startswith(f"{key}.")}
        if setting.option.kind != "variables":
            found = {name: item for name, item in found.items() if name == key}
        if setting.option.kind == "url":  # such a URL often contains a token
            found = {name: replace(item, value=describe_url(item.value)) for name, item in found.items()}
        rows += [(name, _to_text(item.value), item.source or item.origin) for name, item in found.items()]
        if not found:
            rows.append((key, setting.own_default, "default"))
    return rows


def _to_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return ", ".join(map(str, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _to_json(made: Configuration) -> dict[str, Any]:
    from skyrl_modal.run.notify import describe_url

    settings: dict[str, Any] = {}
    for key, setting in made.known.items():
        settings[key] = {"value": setting.default, "origin": "default", "source": None}
        if setting.option.kind == "variables":
            del settings[key]
    for name, item in made.values.items():
        value = describe_url(item.value) if name == "notify" else item.value
        settings[name] = {"value": value, "origin": item.origin, "source": item.source or None}
    return {"profile": made.profile, "files": [str(file.path) for file in made.files], "settings": settings}


@cli.command()
@click.option("--user", "is_user", is_flag=True, help="Write your own file, which applies to all checkouts.")
@click.option("--yes", "-y", "is_yes", is_flag=True, help="Write the defaults without questions.")
def init(is_user: bool, is_yes: bool) -> None:
    """Write a configuration file after a few questions: skyrl-modal.toml in the checkout, or your own file."""
    from skyrl_modal.config.new_file import questions, write_new

    if not is_yes and not (sys.stdin is not None and sys.stdin.isatty()):
        remedy = "there is no terminal for questions. Pass --yes to write the defaults"
        raise SpecError("yes", False, remedy, source="init")
    path = _path_of_new_file(is_user=is_user)
    if path.exists():
        raise StorageError(str(path), "the file exists already. Edit it, or remove it first")
    answers = {}
    for question in questions(is_user=is_user):
        answers[question.key] = question.default if is_yes else _ask(question.text, question.default, question.check)
    write_new(path, answers, is_user=is_user)
    print_line(path)
    StderrReporter().info("`skyrl-modal config` shows all settings")


def _ask(text: str, default: str, check: Any) -> str:
    """Ask until the answer is valid."""
    while True:
        answer = str(click.prompt(text, default=default, err=True)).strip()
        try:
            check(answer)
        except SpecError as error:
            click.echo(f"{error.value}: {error.remedy}", err=True)
        else:
            return answer


def _path_of_new_file(*, is_user: bool) -> Path:
    from skyrl_modal.checkout_search import find_checkout
    from skyrl_modal.config.files import FILE_NAME, user_config_path
    from skyrl_modal.errors import CheckoutNotFound

    if is_user:
        return user_config_path()
    try:
        return find_checkout() / FILE_NAME
    except CheckoutNotFound:
        return Path.cwd() / FILE_NAME


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print a script that completes commands, options, and ids of runs in a shell.

    \b
    bash:  eval "$(skyrl-modal completion bash)"  in ~/.bashrc
    zsh:   eval "$(skyrl-modal completion zsh)"   in ~/.zshrc
    fish:  skyrl-modal completion fish > ~/.config/fish/completions/skyrl-modal.fish
    """
    from click.shell_completion import get_completion_class

    cls = get_completion_class(shell)
    if cls is not None:
        print_line(cls(cli, {}, "skyrl-modal", "_SKYRL_MODAL_COMPLETE").source())
