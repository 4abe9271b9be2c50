"""Commands about the files of volumes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from skyrl_modal.cli.base import VolumeCommand, attach_run, cli, make_launcher
from skyrl_modal.cli.output import print_line, print_rows, write_output
from skyrl_modal.errors import BackendUnavailable
from skyrl_modal.views.text import StderrReporter, escape_controls, warnings_as_messages

if TYPE_CHECKING:
    from skyrl_modal.backends import VolumeEntry
    from skyrl_modal.transfers.plan import TransferPlan
    from skyrl_modal.transfers.volume_files import DiskUsage
    from skyrl_modal.views.transfer_progress import TransferProgress

_FOLDER = "/root/data"
_JSON = click.option("--json", "is_json", is_flag=True, help="Print JSON.")
_FORCE_COPY = click.option("--force", is_flag=True, help="Copy files again that are unchanged.")
_QUIET = click.option("--quiet", "-q", is_flag=True, help="Suppress the progress and the summary.")


def _print_json(value: object) -> None:
    print_line(json.dumps(value, indent=2))


def _number(value: int) -> str:
    return f"{value:>18,}"


@cli.command(cls=VolumeCommand)
@click.option("-l", "is_long", is_flag=True, help="Also print the time of the last change.")
@_JSON
@click.argument("paths", metavar="[PATH]...", nargs=-1)
def ls(is_long: bool, is_json: bool, paths: Sequence[str], **options: Any) -> None:
    """List folders and files of volumes, by their paths in the container. The default is /root/data.

    A pattern in quotes, such as '/root/data/ckpts/global_step_*', lists what matches it.
    """
    launcher = make_launcher(options)
    entries = [entry for path in paths or [_FOLDER] for entry in launcher.ls(path)]
    if is_json:
        _print_json([_entry_values(entry) for entry in entries])
        return
    headings, rows = ["type", "bytes".rjust(18)], [[entry.type, _number(entry.size)] for entry in entries]
    if is_long:
        headings.append("modified")
        for row, entry in zip(rows, entries, strict=True):
            row.append(_format_time(entry.mtime))
    for row, entry in zip(rows, entries, strict=True):
        row.append(entry.path)
    print_rows([*headings, "path"], rows)


def _entry_values(entry: VolumeEntry) -> dict[str, object]:
    return {"path": entry.path, "type": str(entry.type), "size": entry.size, "mtime": entry.mtime}


def _format_time(seconds: float) -> str:
    """Return a time in the time zone of this machine. Another writer of a volume may set any time."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "-"


@cli.command(cls=VolumeCommand)
@_JSON
@click.argument("path", default=_FOLDER)
def du(is_json: bool, path: str, **options: Any) -> None:
    """Print the size of PATH on a volume, and of each file and folder in it. The last line is the total."""
    usage = make_launcher(options).du(path)
    if is_json:
        _print_json(_usage_values(usage))
        return
    rows = [(_number(each.bytes), f"{each.files:>10,}", each.path) for each in (*usage.entries, usage)]
    print_rows(("bytes".rjust(18), "files".rjust(10), "path"), rows)


def _usage_values(usage: DiskUsage) -> dict[str, object]:
    values: dict[str, object] = {"path": usage.path, "bytes": usage.bytes, "files": usage.files}
    return values | {"entries": [_usage_values(each) for each in usage.entries]}


@cli.command(cls=VolumeCommand)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def cat(paths: Sequence[str], **options: Any) -> None:
    """Print files of a volume, byte for byte."""
    launcher = make_launcher(options)
    for path in paths:
        for data in launcher.read(path):
            write_output(data)


@cli.command(cls=VolumeCommand)
@click.option("-r", "--recursive", is_flag=True, help="Remove folders with their content.")
@click.option("--force", is_flag=True, help="Also remove all files of a volume, or the records of runs.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def rm(recursive: bool, force: bool, dry_run: bool, paths: Sequence[str], **options: Any) -> None:
    """Remove files and folders of volumes, by their paths in the container, or patterns in quotes.

    Print the paths. All of them are checked before the first one is removed.
    """
    from skyrl_modal import volume_access
    from skyrl_modal.errors import translate_system_errors

    launcher = make_launcher(options)
    with translate_system_errors():
        for is_check in (True,) if dry_run else (True, False):
            for path in paths:
                found = volume_access.remove(launcher, path, recursive=recursive, force=force, dry_run=is_check)
                if is_check is dry_run:
                    for each in found:
                        print_line(escape_controls(each))


@cli.command(cls=VolumeCommand)
@_FORCE_COPY
@_QUIET
@click.option("--dry-run", is_flag=True, help="Print what would be copied, and copy nothing.")
@click.option("--json", "is_json", is_flag=True, help="With --dry-run: print JSON.")
@click.option("--run", "run_id", metavar="RUN_ID", help="Copy the folder of this run instead of a PATH.")
@click.option("--checkpoints", is_flag=True, help="With --run: also copy its checkpoint folders.")
@click.argument("paths", metavar="PATH... [LOCAL]", nargs=-1)
def pull(
    force: bool,
    quiet: bool,
    dry_run: bool,
    is_json: bool,
    run_id: str | None,
    checkpoints: bool,
    paths: Sequence[str],
    **options: Any,
) -> None:
    """Copy each PATH of a volume to LOCAL on this machine, and print where the copy is.

    LOCAL is the working directory if only one PATH is given. With a slash at its end, or as an existing folder, it
    receives the copies under their names. PATH can be a pattern in quotes, such as '/root/data/ckpts/global_step_*'.
    A pull that was interrupted continues where it was.
    """
    from skyrl_modal import volume_access

    if run_id is not None:
        _pull_run(run_id, paths, checkpoints=checkpoints, force=force, quiet=quiet, is_plan=dry_run or is_json)
        return
    if not paths or checkpoints:
        raise click.UsageError("pass a PATH, or --run RUN_ID" if not paths else "--checkpoints requires --run")
    _check_json(is_json, dry_run)
    sources, local = (list(paths), ".") if len(paths) == 1 else (list(paths[:-1]), paths[-1])
    launcher = make_launcher(options)
    with warnings_as_messages():
        if dry_run:
            _print_plan(launcher.plan_pull(_one_or_several(sources), local, force=force), is_json)
            return
        with _transfer("pull", quiet=quiet) as progress:
            copy = volume_access.pull(launcher, _one_or_several(sources), local, force=force, progress=progress)
    print_line(escape_controls(str(copy)))


@cli.command(cls=VolumeCommand)
@_FORCE_COPY
@_QUIET
@click.option("--dry-run", is_flag=True, help="Print what would be copied, and copy nothing.")
@click.option("--json", "is_json", is_flag=True, help="With --dry-run: print JSON.")
@click.argument("local", metavar="LOCAL...", nargs=-1, required=True)
@click.argument("path")
def push(
    force: bool, quiet: bool, dry_run: bool, is_json: bool, local: Sequence[str], path: str, **options: Any
) -> None:
    """Copy each LOCAL file or folder to PATH on a volume, and print where the copy is.

    PATH is the path of the copy in the container. With a slash at its end, or as an existing folder, it receives the
    copies under their names. A push that was interrupted continues where it was.
    """
    from skyrl_modal import volume_access

    _check_json(is_json, dry_run)
    launcher = make_launcher(options)
    with warnings_as_messages():
        if dry_run:
            _print_plan(launcher.plan_push(list(local), path, force=force), is_json)
            return
        with _transfer("push", quiet=quiet) as progress:
            copy = volume_access.push(launcher, list(local), path, force=force, progress=progress)
    print_line(escape_controls(copy))


def _pull_run(run_id: str, paths: Sequence[str], *, checkpoints: bool, force: bool, quiet: bool, is_plan: bool) -> None:
    if is_plan or len(paths) > 1:
        raise click.UsageError("--run accepts only LOCAL, --checkpoints, --force and --quiet")
    with warnings_as_messages():
        local = paths[0] if paths else "."
        copy = attach_run(run_id).pull(local, checkpoints=checkpoints, force=force, quiet=quiet)
    print_line(escape_controls(str(copy)))


@contextlib.contextmanager
def _transfer(verb: str, *, quiet: bool) -> Iterator[TransferProgress]:
    """Display the progress of a transfer and its summary, and how it continues after Ctrl-C or an outage."""
    from skyrl_modal.errors import translate_system_errors
    from skyrl_modal.views.transfer_progress import TransferProgress

    progress = TransferProgress(verb, quiet=quiet)
    try:
        with translate_system_errors():
            yield progress
    except (KeyboardInterrupt, BackendUnavailable):
        if progress.done_bytes:
            StderrReporter().info("what was copied is kept: the same command continues the transfer")
        raise
    if not quiet:
        StderrReporter().info(progress.summary())


def _one_or_several(paths: Sequence[str]) -> str | Sequence[str]:
    return paths[0] if len(paths) == 1 else paths


def _check_json(is_json: bool, dry_run: bool) -> None:
    if is_json and not dry_run:
        raise click.UsageError("--json prints what --dry-run finds; add --dry-run, or omit --json")


def _print_plan(plan: TransferPlan, is_json: bool) -> None:
    if is_json:
        print_line(plan.to_json())
        return
    print_rows(
        ("file", "bytes".rjust(18), "path"), [(str(file.state), _number(file.size), file.path) for file in plan.files]
    )
    copied = [file for file in plan.files if file.state != "unchanged"]
    StderrReporter().info(f"{len(copied):,} of {len(plan.files):,} files ({plan.size:,} bytes) would be copied")
    for text in plan.warnings:
        StderrReporter().warn(text)
