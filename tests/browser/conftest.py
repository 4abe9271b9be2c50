"""A browser, the server of ``skyrl-modal ui`` in a process of its own, and runs that it shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.browser import sample_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
#: No network, no sandbox as root, no first-run pages.
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
#: Milliseconds until a wait for an event fails. The time of an event depends on the load of the machine.
TIMEOUT = 30_000


class Server(NamedTuple):
    """A server: its address with the token, without it, and its process."""

    url: str
    base: str
    process: subprocess.Popen[str]


class Runs(NamedTuple):
    """The ids of the runs."""

    first: str
    second: str


# The fixtures end with the module: a running Playwright has an event loop, which other tests must not find.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return Debian's Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"the tests of the page need {CHROMIUM}: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="the tests of the page need playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS), timeout=TIMEOUT)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def own_folders(isolated_user_folders: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the runs and the server use a list of runs of their own. The other one has the runs of other tests."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
            patch.setenv(name, str(folder / name))
        yield


@pytest.fixture(scope="module")
def runs(browser: Browser, own_folders: None, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return two runs that have ended. The first has all that the page shows, and hostile content."""
    checkout = sample_runs.make_checkout(tmp_path_factory.mktemp("page") / "SkyRL")
    code = (
        "from skyrl_modal import log_metrics\n"
        "for i in range(1, 31): log_metrics({'reward/avg_raw_reward': i / 60, 'loss/avg_kl': 2 / i}, step=i)"
    )
    return Runs(sample_runs.run_training(checkout), sample_runs.run_small("gsm8k-second", code))


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """Execute ``skyrl-modal ui`` until the block ends."""
    command = [sys.executable, "-m", "skyrl_modal", "ui", "--json", "--no-browser", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        yield Server(url, url.split("/?")[0], process)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def server(runs: Runs) -> Iterator[Server]:
    """Return the server of the tests."""
    with serving("--allow-actions") as server:
        yield server


@pytest.fixture
def new_page(browser: Browser, server: Server) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a page with the token. The test fails if a script of the page has failed."""
    errors: list[str] = []
    contexts = []

    def new(*, width: int = 1440, height: int = 900, scheme: str = "light", url: str = server.url) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Security Policy" in message.text else None)
        page.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
        page.goto(url)
        return page

    yield new
    hacked = [page.evaluate("window.hacked") for context in contexts for page in context.pages if not page.is_closed()]
    for context in contexts:
        context.close()
    assert errors == []
    assert not any(hacked)


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    """Return a page with the list of runs."""
    return new_page()
