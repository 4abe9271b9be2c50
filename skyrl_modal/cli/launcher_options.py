"""The options of the commands that use a launcher, and the launcher that they describe."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import click

from skyrl_modal.cli.own_settings import keep_configuration, kept_configuration
from skyrl_modal.config.resolve import Configuration, resolve
from skyrl_modal.config.settings import Setting, all_settings
from skyrl_modal.errors import SpecError
from skyrl_modal.launcher import Launcher
from skyrl_modal.views.text import warnings_as_messages

_METAVARS = {
    "buckets": "PATH=NAME[,KEY=VALUE...]",
    "codes": "CODES", "duration": "DURATION", "gpus": "GPU", "mounts": "PATH=FOLDER", "number": "NUMBER",
    "path": "FOLDER", "secrets": "NAME", "variables": "NAME=VALUE", "volumes": "PATH=NAME", "whole": "NUMBER",
}  # fmt: skip
_REPEATED = ("buckets", "list", "mounts", "secrets", "variables", "volumes")


class LauncherOption(click.Option):
    """An option for a setting of the launcher.

    Args:
        flags: Its names.
        setting: The setting.
        text: The help text; None for that of the setting.
    """

    def __init__(self, flags: Sequence[str], setting: Setting, text: str | None = None, **options: Any) -> None:
        super().__init__(flags, help=text or _help(setting), **options)
        self.section = setting.option.section


def _number_or_none(text: str) -> float | str:
    """Return a number, or the text ``none``, which removes the value of a file."""
    try:
        return "none" if text.lower() == "none" else float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number, and not none") from None


def _whole_number_or_none(text: str) -> int | str:
    try:
        return "none" if text.lower() == "none" else int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a whole number, and not none") from None


def _help(setting: Setting) -> str:
    repeated = " Can be repeated." if setting.option.kind in _REPEATED else ""
    return f"{setting.option.help}{repeated} Default: {setting.default_text}."


def _type(setting: Setting) -> Any:
    match setting.option.kind:
        case "whole":
            return _whole_number_or_none if setting.is_optional else int
        case "number":
            return _number_or_none if setting.is_optional else float
        case _:
            return None


def _name(key: str) -> str:
    """Return the name of the parameter for a setting: an identifier."""
    return key.replace(".", "__")


def _make_option(setting: Setting) -> LauncherOption:
    flag, kind, name = setting.flag, setting.option.kind, _name(setting.key)
    if kind == "flag":
        return LauncherOption([f"{flag}/--no-{str(flag)[2:]}", name], setting, default=None)
    metavar = setting.option.metavar or _METAVARS.get(kind) or "|".join(setting.option.choices) or "TEXT"
    return LauncherOption([str(flag), name], setting, metavar=metavar, type=_type(setting), multiple=kind in _REPEATED)


def _secret_options(setting: Setting) -> list[LauncherOption]:
    """Return the further options for secrets."""
    repeated = {"multiple": True, "metavar": "NAME"}
    return [
        LauncherOption(
            ["--secret-if-set"],
            setting,
            "As --secret, but the run starts without the variable if it is not set.",
            **repeated,
        ),
        LauncherOption(
            ["--modal-secret"],
            setting,
            "A secret that Modal stores, with the variables that it must have and that are masked.",
            **{**repeated, "metavar": "NAME[=VARIABLE,...]"},
        ),
    ]


@cache
def launcher_options(keys: Collection[str] = ()) -> Sequence[click.Option]:
    """Return the options, in the order of the help text.

    Args:
        keys: The keys of the settings; empty for all.
    """
    options: list[click.Option] = []
    for key, setting in all_settings(Launcher).items():
        if (keys and key not in keys) or setting.flag is None:
            continue
        options.append(_make_option(setting))
        if key == "secrets":
            options += _secret_options(setting)
    text = "Use a profile of the configuration files. Default: $SKYRL_MODAL_PROFILE, else none."
    return (*options, click.Option(["--profile"], metavar="NAME", help=text))


def _parse_pairs(values: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals:
            raise click.UsageError(f"{option} requires NAME=VALUE, not {value!r}")
        pairs[name] = content
    return pairs


def _parse_bucket(text: str, option: str) -> dict[str, object]:
    """Return the table of a bucket for ``PATH=NAME[,KEY=VALUE...]``."""
    place, *others = text.split(",")
    path, equals, name = place.partition("=")
    if not equals:
        raise click.UsageError(f"{option} requires PATH=NAME[,KEY=VALUE...], not {text!r}")
    flags: dict[str, object] = {"true": True, "false": False}
    pairs = _parse_pairs(others, f"{option} PATH=NAME,")
    return {"mount_path": path, "name": name, **{key: flags.get(value, value) for key, value in pairs.items()}}


def _to_setting(kind: str, flag: str, value: Any) -> Any:
    """Return the value of an option as a configuration file has it."""
    match kind:
        case "variables":
            return _parse_pairs(value, flag)
        case "mounts":
            pairs = _parse_pairs(value, flag)
            return [{"remote_path": path, "local_path": folder} for path, folder in pairs.items()]
        case "volumes":
            return [{"mount_path": path, "name": name} for path, name in _parse_pairs(value, flag).items()]
        case "buckets":
            return [_parse_bucket(text, flag) for text in value]
        case "list":
            return list(value)
        case _:
            return value


def _to_secrets(options: Mapping[str, Any]) -> tuple[list[Any], str]:
    """Return the secrets of the three options, and the options that were used."""
    given = {f"--{name.replace('_', '-')}": options.get(name) or () for name in ("secret_if_set", "modal_secret")}
    given = {"--secret": options.get("secrets") or (), **given}
    secrets: list[Any] = list(given["--secret"])
    secrets += [{"name": name, "source": "environment", "optional": True} for name in given["--secret-if-set"]]
    for text in given["--modal-secret"]:
        name, _, keys = text.partition("=")
        secrets.append({"name": name, "keys": keys.split(",") if keys else []})
    return secrets, "/".join(flag for flag, values in given.items() if values)


def configuration(options: Mapping[str, Any]) -> Configuration:
    """Return the settings for the values of ``launcher_options``, the environment and the configuration files."""
    known = all_settings(Launcher)
    arguments: dict[str, Any] = {}
    flags: dict[str, str] = {}
    for key, setting in known.items():
        value = options.get(_name(key))
        if value is not None and value != () and setting.flag is not None and key != "secrets":
            arguments[key] = _to_setting(setting.option.kind, setting.flag, value)
    secrets, flag = _to_secrets(options)
    if secrets:
        arguments["secrets"], flags["secrets"] = secrets, flag
    for key in arguments:
        if known[key].option.kind == "flag":
            flags[key] = str(known[key].flag)
    with warnings_as_messages():
        made = resolve(Launcher, arguments, profile=options.get("profile"), flags=flags)
    keep_configuration(made)
    return made


def make_launcher(options: Mapping[str, Any]) -> Launcher:
    """Return the launcher for the values of ``launcher_options``. An omitted option leaves the field's default."""
    return launcher_of(configuration(options))


def launcher_of(made: Configuration) -> Launcher:
    """Return the launcher with some settings."""
    with warnings_as_messages():
        fields = made.launcher_fields()
        try:
            return Launcher(**fields)
        except SpecError as error:
            raise made.located(error) from None


def located(error: SpecError, context: click.Context) -> SpecError:
    """Return an error that names the option, variable or file of its value, if that is known."""
    made = kept_configuration(context)
    return error if made is None else made.located(error)
