"""The command line: a thin skin over Launcher and Run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from skyrl_modal.errors import BackendUnavailable, SkyRLModalError
from skyrl_modal.launcher import Launcher
from skyrl_modal.run.handle import Run, runs
from skyrl_modal.spec.mount import MountSpec
from skyrl_modal.spec.ray import RaySpec
from skyrl_modal.spec.volume import VolumeSpec
from skyrl_modal.views.text import PREFIX

#: Exit code where the launcher, and not the command, failed; the shell's own for a command that was not started.
USAGE = 2


def _pairs(values: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals:
            raise click.UsageError(f"{option} takes NAME=VALUE, not {value!r}")
        pairs[name] = content
    return pairs


def _launcher_options(function: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--backend", help='"modal" or "local"; default: $SKYRL_MODAL_BACKEND, else modal.'),
        click.option("--gpu", help='Such as A100-80GB:4, or "none"; default: $MODAL_GPU, else L4:1.'),
        click.option("--nodes", type=int, help="Containers in the Ray cluster; default: 1."),
        click.option("--timeout", help="Such as 90m or 24h; default: 1h."),
        click.option("--retries", type=int, help="Further attempts after a failure or a time-out."),
        click.option("--workdir", help="Folder in the checkout to run in."),
        click.option("--checkout", help="The SkyRL checkout; default: found."),
        click.option(
            "--mount", multiple=True, metavar="PATH=FOLDER", help="A further folder, at PATH in the container."
        ),
        click.option("--volume", multiple=True, metavar="PATH=NAME", help="Volumes instead of /root/data=skyrl-data."),
        click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for the command."),
        click.option("--secret", multiple=True, metavar="NAME", help="A variable of yours, kept out of all records."),
        click.option("--ray/--no-ray", default=True, help="Whether Ray is up when the command starts."),
        click.option("--dashboard", is_flag=True, help="Run Ray's dashboard as well."),
        click.option("--app-name", help="Name of the Modal app."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _launcher(
    backend: str | None,
    gpu: str | None,
    nodes: int | None,
    timeout: str | None,
    retries: int | None,
    workdir: str | None,
    checkout: str | None,
    mount: Sequence[str],
    volume: Sequence[str],
    env: Sequence[str],
    secret: Sequence[str],
    ray: bool,
    dashboard: bool,
    app_name: str | None,
) -> Launcher:
    given: dict[str, Any] = {
        "backend": backend,
        "nodes": nodes,
        "timeout": timeout,
        "retries": retries,
        "workdir": workdir,
        "checkout": checkout,
        "app_name": app_name,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    if gpu is not None:
        fields["gpu"] = None if gpu.lower() == "none" else gpu.split(",")
    if mount:
        others = [MountSpec(remote_path=path, local_path=folder) for path, folder in _pairs(mount, "--mount").items()]
        fields["mounts"] = [MountSpec(), *others]
    if volume:
        fields["volumes"] = [
            VolumeSpec(mount_path=path, name=name) for path, name in _pairs(volume, "--volume").items()
        ]
    return Launcher(
        **fields, env=_pairs(env, "--env"), secrets=secret, ray=RaySpec(dashboard=dashboard) if ray else None
    )


def _command(words: Sequence[str]) -> str | list[str]:
    """One word is a shell string; several are the arguments themselves."""
    return words[0] if len(words) == 1 else list(words)


class _Commands(click.Group):
    """The commands. A reader that goes away, as with ``| head``, ends them as it ends any program."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What Python flushes as it ends would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="skyrl-modal")
def cli() -> None:
    """Run commands from a SkyRL checkout in Modal GPU containers, or on this machine at the same paths."""


@cli.command()
@_launcher_options
@click.option("--quiet", "-q", is_flag=True, help="Leave out our own lines.")
@click.argument("command", nargs=-1, required=True)
def run(quiet: bool, command: Sequence[str], **options: Any) -> None:
    """Run COMMAND and end with its exit code. One word is a shell string; after --, several are arguments."""
    result = _launcher(**options).run(_command(command), quiet=quiet)
    sys.exit(result.returncode)


@cli.command()
@_launcher_options
@click.argument("command", nargs=-1, required=True)
def plan(command: Sequence[str], **options: Any) -> None:
    """Show what would run where with which files; nothing is started."""
    made = _launcher(**options).plan(_command(command))
    click.echo(made)
    for selection in made.selections:
        click.echo()
        click.echo(selection)


@cli.command()
@_launcher_options
@click.argument("command", nargs=-1, required=True)
def submit(command: Sequence[str], **options: Any) -> None:
    """Start COMMAND and print the run's id; it goes on by itself."""
    click.echo(_launcher(**options).submit(_command(command)).id)


@cli.command()
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@click.option("--tail", type=int, help="Only so many of the lines that are there.")
@click.option("--rank", type=int, help="What this rank's supervisor and Ray left, instead of the command's output.")
@click.argument("run_id")
def logs(follow: bool, tail: int | None, rank: int | None, run_id: str) -> None:
    """Print a run's output. Ctrl-C only stops looking."""
    for line in Run.attach(run_id).logs(follow=follow, tail=tail, rank=rank):
        click.echo(line)


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Not only the newest 20.")
def ps(everything: bool) -> None:
    """List the runs started from this machine, the newest first."""
    for one in runs(limit=None if everything else 20):
        try:
            state = str(one.state)
        except BackendUnavailable as error:
            state = "unknown"
            click.echo(f"skyrl-modal: {one.id}: {error}", err=True)
        click.echo(f"{one.id}  {state:10}  {one.backend:6}  {one.job.command.splitlines()[0][:80]}")


@cli.command()
@click.argument("run_id")
def attach(run_id: str) -> None:
    """Follow a run to its end and end with its exit code. Ctrl-C only stops looking."""
    run = Run.attach(run_id)
    for kind, value in run.events():
        if kind == "output":
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
        elif kind == "line":
            click.echo(f"{PREFIX}{value}", err=True)
    sys.exit(run.wait().returncode)


@cli.command()
@click.option("--timeout", type=float, help="Seconds to wait at the most; the run goes on.")
@click.argument("run_id")
def wait(timeout: float | None, run_id: str) -> None:
    """Wait for a run's end and end with its exit code."""
    result = Run.attach(run_id).wait(timeout)
    click.echo(f"{PREFIX}{result.state}, exit code {result.returncode}; log: {result.log_path}", err=True)
    sys.exit(result.returncode)


@cli.command()
@click.option("--now", is_flag=True, help="At once, without time to save.")
@click.argument("run_id")
def cancel(now: bool, run_id: str) -> None:
    """Ask a run to end."""
    Run.attach(run_id).cancel(now=now)


@cli.command()
@_launcher_options
@click.argument("path", default="/root/data")
def ls(path: str, **options: Any) -> None:
    """List a folder of a volume, by its path in the container."""
    for entry in _launcher(**options).ls(path):
        click.echo(f"{entry.type:5} {entry.size:>14,}  {entry.path}")


@cli.command()
@_launcher_options
@click.argument("path")
@click.argument("local", default=".")
def pull(path: str, local: str, **options: Any) -> None:
    """Copy PATH of a volume to LOCAL."""
    click.echo(_launcher(**options).pull(path, local))


@cli.command()
@_launcher_options
@click.argument("local")
@click.argument("path")
def push(local: str, path: str, **options: Any) -> None:
    """Copy LOCAL to PATH on a volume."""
    _launcher(**options).push(local, path)


@cli.command()
def doctor() -> None:
    """Say what works on this machine and what is missing, with the remedy."""
    from skyrl_modal.doctor import examine

    healthy = True
    for finding in examine():
        click.echo(f"{'ok ' if finding.ok else 'NO '} {finding.what}: {finding.detail}")
        healthy = healthy and (finding.ok or finding.optional)
    sys.exit(0 if healthy else 1)


def main() -> None:
    """The entry point: errors of ours in a line, Ctrl-C as 130."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except (SkyRLModalError, FileNotFoundError) as error:
        click.echo(f"skyrl-modal: {error}", err=True)
        sys.exit(USAGE)
