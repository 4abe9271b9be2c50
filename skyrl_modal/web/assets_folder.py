"""The files of the page."""

from __future__ import annotations

from importlib.resources import files

#: Their names and types. No other file is sent.
ASSETS = {
    "index.html": "text/html; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "uplot.css": "text/css; charset=utf-8",
    "uplot.js": "text/javascript; charset=utf-8",
    "uplot-LICENSE": "text/plain; charset=utf-8",
}


def read_asset(name: str) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return files("skyrl_modal.web").joinpath("assets", name).read_bytes()
