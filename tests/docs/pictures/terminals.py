"""The pictures of terminals."""

from __future__ import annotations

from pathlib import Path

from tests.docs.pictures.sandbox import CHECKOUT, CLONE, Sandbox, find_names, newest_quickstart
from tests.docs.pictures.shown import ANIMATION, QUICKSTART, STILLS, WIDTHS
from tests.docs.pictures.svg import draw_animation, draw_still
from tests.docs.pictures.terminal import Recording

#: The animation of README.md: its size, its seconds at most, and the seconds for which a screen is shown at least.
SIZE, SECONDS, INTERVAL = (80, 28), 40.0, 0.2
_LINES = 120


def draw_terminals(sandbox: Sandbox, folder: Path) -> None:
    """Make the pictures of terminals, and keep the quickstart's runs in the sandbox."""
    recording = record_quickstart(sandbox, sandbox.home.parent / "quickstart.cast")
    check(recording, ANIMATION)
    picture = draw_animation(recording.limited(SECONDS).screens(INTERVAL), QUICKSTART.title)
    (folder / ANIMATION).write_text(picture, encoding="utf-8")
    newest = newest_quickstart(sandbox)
    for terminal in STILLS:
        for width in WIDTHS:
            recording = Recording(width, _LINES)
            for line in terminal.commands:
                recording.type(line)
                recording.run(sandbox.command(line.replace("latest", newest), CHECKOUT))
            name = terminal.file_name(width)
            check(recording, name)
            (folder / name).write_text(draw_still(recording.final_lines(), terminal.title), encoding="utf-8")


def record_quickstart(sandbox: Sandbox, cast: Path) -> Recording:
    """Return the recording in a file, or make and write it."""
    if cast.exists():
        return Recording.read_cast(cast)
    recording = Recording(*SIZE)
    for line in QUICKSTART.commands:
        recording.type(line)
        code = recording.run(sandbox.command(line, CLONE), timeout=900)
        if code != 0:
            raise SystemExit(f"pictures: {line} exited with {code}: {recording.text()[-2000:]}")
    recording.write_cast(cast)
    return recording


def check(recording: Recording, name: str) -> None:
    """Refuse what names this machine."""
    found = find_names(recording.text())
    if found:
        raise SystemExit(f"pictures: {name} contains {', '.join(found)}")
