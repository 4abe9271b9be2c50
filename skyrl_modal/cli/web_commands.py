"""The web page of the runs, and its export."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from skyrl_modal.cli.base import cli
from skyrl_modal.cli.output import print_line
from skyrl_modal.errors import SkyRLModalError, SpecError
from skyrl_modal.views.text import StderrReporter

if TYPE_CHECKING:
    from skyrl_modal.web.server import WebServer


@cli.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1; a free one by default.")
@click.option("--allow-actions", is_flag=True, help="Permit the page to cancel runs. Otherwise it only reads.")
@click.option("--no-browser", is_flag=True, help="Do not open the page in a browser.")
@click.option("--json", "is_json", is_flag=True, help="Print the address as JSON.")
def ui(port: int, allow_actions: bool, no_browser: bool, is_json: bool) -> None:
    """Show the runs of this machine on a web page: curves, rollouts, checkpoints, logs. Ctrl-C ends it."""
    server = _make_server(port, allow_actions=allow_actions)

    def ready() -> None:
        if is_json:
            import json  # imported here, since the other commands of this module do not need it

            print_line(json.dumps({"url": server.url}))
        else:
            print_line(server.url)
        sys.stdout.flush()
        if not no_browser and _has_display():
            import webbrowser  # imported here, since it is rarely needed

            webbrowser.open(server.url)

    if sys.stderr is not None and sys.stderr.isatty():
        StderrReporter().info("the page requires the token in its address; Ctrl-C ends the server")
    server.serve(ready)


def _make_server(port: int, *, allow_actions: bool) -> WebServer:
    try:
        from skyrl_modal.web.server import WebServer
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("starlette", "uvicorn", "anyio", "h11"):
            raise
        message = f"the page requires the package {package}: pip install 'skyrl-modal[ui]'"
        raise SkyRLModalError(message) from None
    return WebServer(port, allow_actions=allow_actions)


def _has_display() -> bool:
    """Return whether a browser can be opened for the user who has entered the command."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return is_terminal and (
        sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )


@cli.command()
@click.option("--output", "-o", "path", metavar="FILE", help="The HTML file; RUN.html by default.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "is_json", is_flag=True, help="Print path and size as JSON.")
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
def export(path: str | None, force: bool, is_json: bool, run_ids: Sequence[str]) -> None:
    """Write one HTML file with runs, to send to others: it needs no network. Secrets and local paths are removed."""
    from pathlib import Path

    from skyrl_modal.run.index import RunIndex
    from skyrl_modal.web.export import export_runs

    records = [RunIndex().find(run_id) for run_id in run_ids]
    target = Path(path if path is not None else f"{records[0].job.run_id}.html")
    if target.exists() and not force:
        raise SpecError("path", str(target), "it exists; pass --force to replace it, or another file")
    size = export_runs(records, target)
    if is_json:
        import json  # imported here, since the other output needs none

        print_line(json.dumps({"path": str(target), "bytes": size, "runs": [each.job.run_id for each in records]}))
    else:
        print_line(target)
