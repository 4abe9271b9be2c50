"""Draws the pictures of the page on concepts, as SVG in colours for a light and a dark background.

.. code-block:: bash

    python -m tests.docs.drawings
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "drawings"
WIDTH = 480
#: Colours by their use. Text has a contrast of at least 4.5 to its background in both.
THEMES = {
    "light": {
        "text": "#1b1f24",
        "soft": "#57606a",
        "line": "#57606a",
        "group": "#f3f5f8",
        "box": "#ffffff",
        "key": "#ddeaff",
    },
    "dark": {
        "text": "#e6e8eb",
        "soft": "#a9b1bb",
        "line": "#98a1ab",
        "group": "#1d2026",
        "box": "#2a2e36",
        "key": "#243a5e",
    },
}


@dataclass
class Drawing:
    """A drawing that is composed of boxes and arrows.

    Attributes:
        title: What it shows, for readers that do not see it.
        height: Its height. The width is that of all drawings.
        parts: SVG elements, with the names of colours in braces.
    """

    title: str
    height: int
    parts: list[str] = field(default_factory=list)

    def group(self, y: int, height: int, title: str, *, x: int = 4, width: int = WIDTH - 8) -> None:
        """Add an area with a title, on which boxes are placed."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="10" fill="{{group}}" stroke="{{line}}" '
            f'stroke-width="0.7"/>'
        )
        self.text(x + 12, y + 21, title, color="soft", weight=600)

    def box(self, x: int, y: int, width: int, title: str, *lines: str, color: str = "box") -> None:
        """Add a box with a title and lines below it."""
        height = 30 + 18 * len(lines)
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{{{color}}}" stroke="{{line}}"/>'
        )
        self.text(x + width // 2, y + 20, title, anchor="middle", weight=600)
        for number, line in enumerate(lines, 1):
            self.text(x + width // 2, y + 20 + 18 * number, line, anchor="middle", color="soft", size=13)

    def text(
        self,
        x: int,
        y: int,
        text: str,
        *,
        anchor: str = "start",
        color: str = "text",
        weight: int = 400,
        size: int = 15,
    ) -> None:
        """Add a line of text."""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
            f'fill="{{{color}}}">{escape(text)}</text>'
        )

    def arrow(
        self, *points: tuple[int, int], label: str = "", at: tuple[int, int] = (0, 0), dashed: bool = False
    ) -> None:
        """Add an arrow along points, with a label at a place."""
        path = " ".join(f"{'M' if number == 0 else 'L'}{x} {y}" for number, (x, y) in enumerate(points))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{{line}}" stroke-width="1.6" marker-end="url(#head)"{dash}/>'
        )
        if label:
            self.text(*at, label, color="soft", size=13)

    def render(self, theme: str) -> str:
        """Return the SVG in the colours of a theme."""
        colors = THEMES[theme]
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" role="img" font-family="system-ui, sans-serif">',
            f"<title>{escape(self.title)}</title>",
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{colors["line"]}"/></marker></defs>',
            *(part.format(**colors) for part in self.parts),
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def path_of_a_command() -> Drawing:
    """Return the drawing of what happens to a command from the call to the result."""
    drawing = Drawing("The path of a command from the call to its result", 574)
    drawing.group(4, 252, "your machine", x=44, width=376)
    drawing.box(90, 34, 300, "run, submit, map", "command line, script or notebook", color="key")
    drawing.arrow((240, 82), (240, 98))
    drawing.box(90, 100, 300, "plan", "files, command, cost, findings")
    drawing.arrow((240, 148), (240, 164))
    drawing.box(90, 166, 300, "snapshot and job", "copy of the files that git includes")
    drawing.text(240, 240, "backend: local or Modal", anchor="middle", color="soft", size=13)
    drawing.arrow((240, 246), (240, 266))
    drawing.group(268, 216, "container on Modal, or this machine", x=44, width=376)
    drawing.box(90, 296, 300, "supervisor", "starts Ray, controls the run")
    drawing.arrow((240, 344), (240, 360))
    drawing.box(90, 362, 300, "command, with Ray running", "in /root/SkyRL, with /root/data", color="key")
    drawing.arrow((240, 410), (240, 426))
    drawing.box(90, 428, 300, "end", "exit code; what remains is stopped")
    drawing.arrow((240, 476), (240, 512))
    drawing.box(50, 514, 380, "result and records on the volume", "output, metrics, logs, checkpoints, cost")
    drawing.arrow((390, 386), (442, 386), (442, 58), (394, 58))
    drawing.text(450, 190, "live output", color="soft", size=13)
    drawing.parts[-1] = drawing.parts[-1].replace("<text ", '<text transform="rotate(90 450 190)" ')
    drawing.arrow((50, 538), (26, 538), (26, 58), (86, 58))
    drawing.text(18, 330, "result, exit code", color="soft", size=13)
    drawing.parts[-1] = drawing.parts[-1].replace("<text ", '<text transform="rotate(-90 18 330)" ')
    return drawing


def files_and_volumes() -> Drawing:
    """Return the drawing of where the files of a run come from, and which remain."""
    drawing = Drawing("Files and volumes: which files a run has, and which remain after it", 474)
    left, right, width = 16, 272, 192
    drawing.group(4, 466, "your machine", x=4, width=216)
    drawing.group(4, 466, "in the run", x=260, width=216)
    drawing.box(left, 36, width, "SkyRL checkout", "never changed by a run", color="key")
    drawing.arrow((112, 84), (112, 104))
    drawing.box(left, 106, width, "snapshot", "the files that git includes,", "as they were at the start")
    drawing.arrow((left + width, 139), (right - 2, 139))
    drawing.box(right, 106, width, "/root/SkyRL", "the snapshot; what is", "written is discarded", color="key")
    drawing.box(left, 202, width, "other folders", "MountSpec, --mount")
    drawing.arrow((left + width, 226), (right - 2, 226))
    drawing.box(right, 202, width, "other mounts", "discarded as well")
    drawing.box(right, 280, width, "/root/data", "volume skyrl-data, which", "the next run has too", color="key")
    drawing.box(left, 280, width, "files of yours", "datasets, results")
    drawing.arrow((left + width, 294), (right - 2, 294), label="push", at=(225, 289))
    drawing.arrow((right, 316), (left + width + 2, 316), label="pull", at=(228, 311))
    drawing.box(right, 376, width, "/tmp, $HOME, others", "lost with the container;", "listed at the end")
    drawing.box(left, 376, width, "skyrl-data", "on Modal, or a folder of", "this machine (local)")
    drawing.arrow((left + width, 400), (240, 400), (240, 338), (right - 2, 338), dashed=True)
    return drawing


def life_of_a_run() -> Drawing:
    """Return the drawing of the states of a run."""
    drawing = Drawing("The life of a run: its states, from pending to the end", 486)
    drawing.box(110, 8, 260, "pending", "waits for a container", color="key")
    drawing.arrow((240, 56), (240, 80))
    drawing.box(110, 82, 260, "preparing", "files, volumes, start of Ray", color="key")
    drawing.arrow((240, 130), (240, 154))
    drawing.box(110, 156, 260, "running", "the command; attempts 1, 2, ...", color="key")
    drawing.arrow((370, 168), (404, 168), (404, 192), (374, 192))
    drawing.text(410, 178, "retry,", color="soft", size=13)
    drawing.text(410, 194, "resume", color="soft", size=13)
    drawing.arrow((110, 180), (62, 180), (62, 106), (106, 106), dashed=True)
    drawing.text(10, 212, "preemption:", color="soft", size=13)
    drawing.text(10, 228, "another container", color="soft", size=13)
    drawing.arrow((240, 204), (240, 250))
    drawing.group(252, 230, "ended: result.json and exit code")
    rows = (
        (("succeeded", "exit code 0"), ("failed", "the command's own, or 125")),
        (("timed_out", "timeout, stall: 124"), ("over_budget", "budget: 124")),
        (("cancelled", "Ctrl-C, cancel, lease"), ("lost", "no result: 125")),
    )
    for number, row in enumerate(rows):
        for x, (title, line) in zip((16, 248), row, strict=True):
            drawing.box(x, 284 + 64 * number, 216, title, line)
    return drawing


def pictures() -> Iterator[tuple[Path, str]]:
    """Yield the path and the content of each file."""
    for drawing in (path_of_a_command, files_and_volumes, life_of_a_run):
        for theme in THEMES:
            yield FOLDER / f"{drawing.__name__.replace('_', '-')}-{theme}.svg", drawing().render(theme)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, content in pictures():
        path.write_text(content, encoding="utf-8")
