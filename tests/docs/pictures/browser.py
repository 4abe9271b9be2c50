"""Photographs of a notebook and of the documentation in Chromium, which reaches nothing but files of this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.docs.pictures.sandbox import CHECKOUT, HOME, ROOT, Sandbox, find_names, newest_quickstart

if TYPE_CHECKING:
    from playwright.sync_api import Page

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
#: Widths of pages: a desktop and a telephone.
DESKTOP, PHONE = 1440, 390
#: The colors of a photograph.
COLORS = 256
#: Milliseconds after which the curves of a page are drawn.
SETTLED = 1500
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
#: The cells of the notebook.
CELLS = (
    'from skyrl_modal import Launcher\n\nlauncher = Launcher(backend="local", gpu="H100:8", ray=None)\n'
    'launcher.plan("bash examples/train/gsm8k/run_gsm8k.sh")',
    'launcher.run("for step in 1 2 3; do echo step $step; done")',
    'launcher.map(["echo reward 0.5", "echo reward 0.75", "python train.py"])',
)


@contextmanager
def open_page(width: int, theme: Theme, *, scale: float = 1) -> Iterator[Page]:
    """Open a page of the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            page = browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme=theme,
                device_scale_factor=scale,
                reduced_motion="reduce",
            )
            page.route("**/*", lambda route: route.continue_() if is_local(route.request.url) else route.abort())
            yield page
        finally:
            browser.close()


def is_local(url: str) -> bool:
    """Return whether a URL is a file, data, or a server of this machine."""
    return url.startswith(("file:", "data:", "http://127.0.0.1:"))


def save(page: Page, file: Path, *, height: int | None = None) -> None:
    """Write a photograph with few colors: of the whole page, or of its top."""
    from PIL import Image

    found = find_names(page.inner_text("body"))
    if found:
        raise SystemExit(f"pictures: {file.name} contains {', '.join(found)}")
    size = page.viewport_size or {"width": DESKTOP, "height": 900}
    whole = int(page.evaluate("document.documentElement.scrollHeight"))
    clip = {"x": 0, "y": 0, "width": size["width"], "height": min(whole, height or whole)}
    page.screenshot(path=file, full_page=True, clip=clip)
    with Image.open(file) as image:
        # Not the median cut, which drops the few pixels of a red or green mark.
        small = image.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(file, optimize=True)


def draw_notebook(sandbox: Sandbox, folder: Path) -> None:
    """Execute a notebook in the sandbox and photograph it."""
    convert_notebook(sandbox, CELLS)
    for theme in THEMES:
        with open_page(900, theme) as page:
            page.goto(f"file://{sandbox.home / f'{theme}.html'}")
            save(page, folder / f"notebook-{theme}.png")


def convert_notebook(sandbox: Sandbox, cells: tuple[str, ...]) -> None:
    """Execute cells and write light.html and dark.html in the home folder."""
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "cells": [
            {"id": f"cell{number}", "cell_type": "code", "source": source, "metadata": {}, "outputs": [],
             "execution_count": None}
            for number, source in enumerate(cells)
        ],
    }  # fmt: skip
    (sandbox.checkout / "pictures.ipynb").write_text(json.dumps(notebook))
    convert = "python -m nbconvert --log-level ERROR pictures.ipynb"
    sandbox.shell(f"{convert} --to notebook --execute --allow-errors --inplace", CHECKOUT)
    for theme in THEMES:
        sandbox.shell(f"{convert} --to html --template lab --theme {theme} --output {HOME}/{theme}.html", CHECKOUT)


def build_documentation(folder: Path) -> Path:
    """Build the documentation and return the folder of its pages."""
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "docs", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def draw_pages(sandbox: Sandbox, folder: Path) -> None:
    """Photograph the page about the first steps as a desktop and a telephone show it."""
    pages = build_documentation(sandbox.home.parent / "pages")
    for width, theme, height in ((DESKTOP, "light", 900), (PHONE, "dark", 844)):
        with open_page(width, theme) as page:
            page.goto(f"file://{pages / 'getting-started.html'}")
            save(page, folder / f"documentation-{width}.png", height=height)


def draw_ui(sandbox: Sandbox, folder: Path) -> None:
    """Photograph the page of ``skyrl-modal ui`` with the metrics of the quickstart's second run."""
    run_id = newest_quickstart(sandbox)
    command = sandbox.command("exec skyrl-modal ui --json --no-browser", CHECKOUT)
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if server.stdout is None:
            raise AssertionError("it is a pipe")
        url = json.loads(server.stdout.readline())["url"]
        for width, height in ((DESKTOP, 900), (PHONE, 844)):
            for theme in THEMES:
                with open_page(width, theme) as page:
                    page.goto(url)
                    page.wait_for_selector(f"text={run_id[:8]}", state="attached")
                    page.goto(f"{url.partition('?')[0]}#/run/{run_id}/metrics")
                    page.wait_for_selector("canvas")
                    page.wait_for_timeout(SETTLED)
                    save(page, folder / f"ui-{width}-{theme}.png", height=height)
    finally:
        server.terminate()
        server.wait()
