"""The options of the commands that use a launcher, and the launcher that they describe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import click

from skyrl_modal.declaration import fields
from skyrl_modal.launcher import Launcher
from skyrl_modal.spec.fields import OPTION_HELP
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.secret import SecretSpec
from skyrl_modal.spec.volume import VolumeSpec
from skyrl_modal.views.text import warnings_as_messages


def _parse_pairs(values: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals:
            raise click.UsageError(f"{option} requires NAME=VALUE, not {value!r}")
        pairs[name] = content
    return pairs


def _field_option(field: str, flag: str | None = None, **settings: Any) -> click.Option:
    """Return the option for a field of Launcher, with the help text of the field."""
    text = getattr(fields(Launcher), field).metadata[OPTION_HELP]
    return click.Option([flag or f"--{field.replace('_', '-')}", field], help=text, **settings)


@cache
def launcher_options() -> Sequence[click.Option]:
    """Return the options, in the order of the help text."""
    return (
        _field_option("backend"),
        _field_option("gpu"),
        _field_option("nodes", type=int),
        _field_option("timeout"),
        _field_option("retries", type=int),
        _field_option("resume"),
        _field_option("budget", type=float),
        _field_option("rate", type=float),
        _field_option("stall"),
        _field_option("start_deadline"),
        _field_option("lease"),
        _field_option("workdir"),
        _field_option("checkout"),
        click.Option(
            ["--mount"], multiple=True, metavar="PATH=FOLDER", help="A further folder, at PATH in the container."
        ),
        click.Option(
            ["--volume"], multiple=True, metavar="PATH=NAME", help="Volumes instead of /root/data=skyrl-data."
        ),
        click.Option(["--env"], multiple=True, metavar="NAME=VALUE", help="A variable for the command."),
        click.Option(
            ["--secret"],
            multiple=True,
            metavar="NAME",
            help="A variable of your environment whose value is kept out of all records.",
        ),
        click.Option(
            ["--secret-if-set"],
            multiple=True,
            metavar="NAME",
            help="As --secret, but the run starts without the variable if it is not set.",
        ),
        click.Option(["--ray/--no-ray"], default=True, help="Whether Ray is running when the command starts."),
        click.Option(["--dashboard"], is_flag=True, help="Also start Ray's dashboard."),
        _field_option("app_name"),
        _field_option("name"),
        _field_option("tags", "--tag", multiple=True, metavar="TAG"),
    )


def make_launcher(**options: Any) -> Launcher:
    """Return the launcher for the values of ``launcher_options``. An omitted option leaves the field's default."""
    mount, volume = options.pop("mount"), options.pop("volume")
    ray, dashboard = options.pop("ray"), options.pop("dashboard")
    env, secret, if_set = options.pop("env"), options.pop("secret"), options.pop("secret_if_set")
    optional = [SecretSpec(name, source="environment", optional=True) for name in if_set]
    fields = {name: value for name, value in options.items() if value is not None}
    if "gpu" in fields:
        fields["gpu"] = None if fields["gpu"].lower() == "none" else fields["gpu"].split(",")
    if mount:
        others = [
            MountSpec(remote_path=path, local_path=folder) for path, folder in _parse_pairs(mount, "--mount").items()
        ]
        fields["mounts"] = [MountSpec(), *others]
    if volume:
        pairs = _parse_pairs(volume, "--volume")
        fields["volumes"] = [VolumeSpec(mount_path=path, name=name) for path, name in pairs.items()]
    fields |= {"env": _parse_pairs(env, "--env"), "secrets": [*secret, *optional]}
    with warnings_as_messages():
        return Launcher(**fields, ray=RaySpec(dashboard=dashboard) if ray else None)
