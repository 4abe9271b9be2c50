"""Draws screens of a terminal as SVG, still or animated, without scripts, fonts or other files."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby

from pyte.screens import Char

Line = Sequence[Char]

#: The size of a character cell, of the text and of the margin, in pixels.
WIDTH, HEIGHT, FONT, MARGIN = 8.4, 18, 14, 14
BACKGROUND, FOREGROUND, BORDER = "#0d1117", "#e6edf3", "#30363d"
#: The colors of a dark terminal; each has a contrast of at least 4.5 to the background.
COLORS = {
    "black": "#8b949e", "red": "#ff7b72", "green": "#56d364", "brown": "#e3b341", "blue": "#79c0ff",
    "magenta": "#d2a8ff", "cyan": "#56d4dd", "white": "#e6edf3", "brightblack": "#8b949e", "brightred": "#ffa198",
    "brightgreen": "#7ee787", "brightbrown": "#f2cc60", "brightblue": "#a5d6ff", "brightmagenta": "#e2c5ff",
    "brightcyan": "#b3f0ff", "brightwhite": "#ffffff",
}  # fmt: skip
FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"


def color_of(name: str, default: str) -> str:
    """Return the color of a character cell for CSS."""
    if name == "default":
        return default
    return COLORS.get(name, f"#{name}" if len(name) == 6 else default)


def draw_line(line: Line) -> str:
    """Return the elements of a line whose top left corner is at (0, 0)."""
    parts, column = [], 0
    for style, group in groupby(line, key=lambda cell: (cell.fg, cell.bg, cell.bold, cell.reverse, cell.underscore)):
        text = "".join(cell.data for cell in group)
        fg, bg, bold, reverse, underscore = style
        front, back = color_of(fg, FOREGROUND), color_of(bg, "")
        if reverse:
            front, back = back or BACKGROUND, front
        if back:
            parts.append(
                f'<path fill="{back}" d="M{column * WIDTH:g} 0h{len(text) * WIDTH:g}v{HEIGHT}H{column * WIDTH:g}"/>'
            )
        parts += _texts(text, column, front, is_bold=bold, is_underlined=underscore)
        column += len(text)
    return "".join(parts)


def _texts(text: str, column: int, color: str, *, is_bold: bool, is_underlined: bool) -> list[str]:
    """Return text elements, one for each part between wide gaps. ``textLength`` keeps columns aligned in any font."""
    parts, position = [], 0
    for is_gap, piece in _pieces(text):
        if not is_gap:
            shown = piece.rstrip()
            attributes = f'x="{(column + position) * WIDTH:g}" y="{HEIGHT - 5}" textLength="{len(shown) * WIDTH:g}"'
            if color != FOREGROUND:
                attributes += f' fill="{color}"'
            if is_bold:
                attributes += ' class="b"'
            if is_underlined:
                attributes += ' text-decoration="underline"'
            parts.append(f"<text {attributes}>{html.escape(shown, quote=False)}</text>")
        position += len(piece)
    return parts


def _pieces(text: str) -> list[tuple[bool, str]]:
    """Return a text in pieces: gaps of two spaces or more, and what is between them, of one block of characters each.

    Lines of boxes and braille patterns are in other fonts in most browsers, whose widths differ.
    """
    pieces: list[tuple[bool, str]] = []
    for (is_gap, _), group in groupby(range(len(text)), key=lambda number: _kind(text, number)):
        pieces.append((is_gap, "".join(text[number] for number in group)))
    return pieces


def _kind(text: str, number: int) -> tuple[bool, int]:
    character = text[number]
    if character == " ":
        is_gap = number in (0, len(text) - 1) or " " in (text[number - 1], text[number + 1])
        return is_gap, 0
    return False, 0 if character < "\u0250" else ord(character) // 256


def _document(columns: int, rows: int, title: str, content: str, style: str = "") -> str:
    width, height = columns * WIDTH + 2 * MARGIN, rows * HEIGHT + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}"'
        f' role="img" font-family="{FONTS}" font-size="{FONT}" fill="{FOREGROUND}"><title>{html.escape(title)}</title>'
        f"<style>text{{white-space:pre}}.b{{font-weight:bold}}{style}</style>"
        f'<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1}" rx="8" fill="{BACKGROUND}"'
        f' stroke="{BORDER}"/>'
        f'<svg x="{MARGIN}" y="{MARGIN}" width="{columns * WIDTH:g}" height="{rows * HEIGHT}">{content}</svg></svg>\n'
    )


def draw_still(lines: Sequence[Line], title: str) -> str:
    """Return a picture of lines."""
    content = "".join(
        f'<g transform="translate(0,{row * HEIGHT})">{draw_line(line)}</g>' for row, line in enumerate(lines)
    )
    return _document(len(lines[0]), len(lines), title, content)


def draw_animation(screens: Sequence[tuple[float, Sequence[Line]]], title: str, *, pause: float = 4.0) -> str:
    """Return screens that replace each other, forever. Where animations are not shown, the last screen is.

    Each distinct line is drawn once. The screens are below each other, and the strip of them is moved in steps.

    Args:
        screens: The seconds at which each screen appears, and its lines.
        title: The title.
        pause: The seconds for which the last screen is shown.
    """
    begin, end = screens[0][0], screens[-1][0] + pause
    rows, columns = len(screens[0][1]), len(screens[0][1][0])
    names: dict[str, str] = {}
    strip, keyframes = [], []
    for number, (moment, lines) in enumerate(screens):
        top = number * rows * HEIGHT
        for row, line in enumerate(lines):
            drawn = draw_line(line)
            if drawn:
                name = names.setdefault(drawn, f"l{len(names)}")
                strip.append(f'<use href="#{name}" y="{top + row * HEIGHT}"/>')
        keyframes.append(f"{(moment - begin) / (end - begin) * 100:.3g}%{{transform:translateY(-{top}px)}}")
    last = (len(screens) - 1) * rows * HEIGHT
    keyframes.append(f"to{{transform:translateY(-{last}px)}}")
    style = (
        f"@keyframes s{{{''.join(keyframes)}}}#s{{transform:translateY(-{last}px);animation:s {end - begin:.1f}s"
        " steps(1,end) infinite}@media(prefers-reduced-motion:reduce){#s{animation:none}}"
    )
    drawings = "".join(f'<g id="{name}">{drawn}</g>' for drawn, name in names.items())
    return _document(columns, rows, title, f'<defs>{drawings}</defs><g id="s">{"".join(strip)}</g>', style)
