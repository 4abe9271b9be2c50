"""The live view of runs on a terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from typing import TYPE_CHECKING

import click

from skyrl_modal.cli.base import attach_run, cli, complete_run
from skyrl_modal.cli.output import print_line
from skyrl_modal.views.colors import has_colors
from skyrl_modal.views.live_line import is_live_terminal
from skyrl_modal.views.text import StderrReporter

if TYPE_CHECKING:
    from skyrl_modal.cli.top_reader import Reader
    from skyrl_modal.views.full_screen import FullScreen
    from skyrl_modal.views.top import TopFrame

#: Seconds after which a frame is drawn again for its times.
_TICK = 1.0
#: Keys that end the view: also Ctrl-D. Ctrl-C is a signal.
_QUIT = ("q", "Q", "\x04")


@cli.command()
@click.option("--once", is_flag=True, help="Print one frame as text and exit, as without a terminal.")
@click.option("--json", "is_json", is_flag=True, help="Print one JSON object and exit.")
@click.argument("run_id", metavar="[RUN]", required=False, shell_complete=complete_run)
def top(once: bool, is_json: bool, run_id: str | None) -> None:
    """Show active runs live on the terminal: state, step, cost, curves, last lines. The key q quits."""
    from skyrl_modal.cli.top_reader import Reader, frame_to_json

    reader = Reader(None if run_id is None else attach_run(run_id).id)
    if is_json:
        import json  # imported here, since the view does not need it

        print_line(json.dumps(frame_to_json(reader.read()), indent=2))
        return
    if not once and is_live_terminal(sys.stdout) and _has_keys():
        _show(reader)
        return
    if not once and sys.stdout is not None and sys.stdout.isatty():
        StderrReporter().info("the terminal cannot show a live view: one frame is shown")
    size = shutil.get_terminal_size()
    height = size.lines if sys.stdout is not None and sys.stdout.isatty() else 24
    for line in _to_text(reader.read(), size.columns, height - 1):
        print_line(line)


def _has_keys() -> bool:
    """Return whether standard input is a terminal of which this process reads."""
    try:
        return sys.stdin is not None and os.isatty(sys.stdin.fileno())
    except (OSError, ValueError):  # it is closed
        return False


def _is_ascii() -> bool:
    return not (getattr(sys.stdout, "encoding", None) or "ascii").lower().startswith("utf")


def _to_text(
    frame: TopFrame, width: int, height: int, chosen: int = 0, position: tuple[int, int] | None = None
) -> list[str]:
    from skyrl_modal.views.top import frame_to_lines, lines_to_text

    lines = frame_to_lines(frame, width=width, height=height, chosen=chosen, position=position, is_ascii=_is_ascii())
    return lines_to_text(lines, has_colors=has_colors(sys.stdout))


def _show(reader: Reader) -> None:
    """Show frames until a key or a signal ends it. The runs continue."""
    from skyrl_modal.views.full_screen import FullScreen

    sys.stdout.flush()
    with FullScreen(sys.stdin.fileno(), sys.stdout.fileno(), sys.stdout.encoding or "ascii") as screen:
        reader.start(screen.wake)
        with contextlib.suppress(OSError):  # the terminal was closed
            _loop(reader, screen)
        ended_by = screen.ended_by
    if reader.error is not None:
        raise reader.error
    if ended_by not in (None, signal.SIGINT):
        signal.signal(ended_by, signal.SIG_DFL)
        os.kill(os.getpid(), ended_by)
    frame = reader.frame
    if frame is not None and frame.returncode is None:
        StderrReporter().info(f"{frame.run_id} continues: `skyrl-modal cancel {frame.run_id}` stops it")


def _loop(reader: Reader, screen: FullScreen) -> None:
    from skyrl_modal.dataclass import replace
    from skyrl_modal.views.top import TopFrame

    chosen = 0
    read_at, before = time.monotonic(), None
    while screen.ended_by is None and reader.error is None:
        frame = reader.frame
        if frame is not before:
            read_at, before = time.monotonic(), frame
        shown = TopFrame(run_id=reader.shown, state="reading") if frame is None else frame
        if shown.duration is not None and shown.returncode is None:
            shown = replace(shown, duration=shown.duration + time.monotonic() - read_at)
        size = screen.size
        # In the last column, a terminal may clear the last character with the rest of the line.
        screen.draw(_to_text(shown, size.columns - 1, size.lines, chosen, reader.position))
        for key in screen.wait(_TICK):
            if key in _QUIT:
                return
            if key in ("n", "right", "p", "left"):
                reader.switch(1 if key in ("n", "right") else -1)
                chosen = 0
            elif key in ("up", "down"):
                chosen = (chosen + (1 if key == "down" else -1)) % max(1, len(shown.curves))
            elif key.isdecimal() and 1 <= int(key) <= len(shown.curves):
                chosen = int(key) - 1
