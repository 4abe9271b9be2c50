"""Commands about the files of volumes."""

from __future__ import annotations

from typing import Any

import click

from skyrl_modal.cli.base import VolumeCommand, cli, make_launcher
from skyrl_modal.cli.output import print_line, print_rows
from skyrl_modal.views.text import warnings_as_messages


@cli.command(cls=VolumeCommand)
@click.argument("path", default="/root/data")
def ls(path: str, **options: Any) -> None:
    """List a folder of a volume, by its path in the container."""
    entries = make_launcher(options).ls(path)
    rows = [(entry.type, f"{entry.size:>14,}", entry.path) for entry in entries]
    print_rows(("type", "bytes".rjust(14), "path"), rows)


@cli.command(cls=VolumeCommand)
@click.argument("path")
@click.argument("local", default=".")
def pull(path: str, local: str, **options: Any) -> None:
    """Copy PATH of a volume to LOCAL."""
    with warnings_as_messages():
        print_line(make_launcher(options).pull(path, local))


@cli.command(cls=VolumeCommand)
@click.argument("local")
@click.argument("path")
def push(local: str, path: str, **options: Any) -> None:
    """Copy LOCAL to PATH on a volume."""
    with warnings_as_messages():
        make_launcher(options).push(local, path)
