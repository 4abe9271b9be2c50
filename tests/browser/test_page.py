"""The page of ``skyrl-modal ui`` in Chromium, with the real server and real runs."""

from __future__ import annotations

import http.server
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import TIMEOUT, Runs, Server, serving
from tests.browser.sample_runs import small_launcher

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NewPage = Callable[..., "Page"]
TABS = ("metrics", "rollouts", "phases", "checkpoints", "log", "details")


def wait_until(page: Page, expression: str, argument: object = None) -> None:
    """Wait until an expression is true. ``page.wait_for_function`` needs ``eval``, which the page does not permit."""
    deadline = time.monotonic() + TIMEOUT / 1000
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def open_run(page: Page, run_id: str, tab: str = "metrics", query: str = "") -> None:
    """Show a tab of a run, and wait for its content."""
    page.evaluate("hash => { location.hash = hash; }", f"#/run/{run_id}/{tab}{query}")
    page.wait_for_selector(f"#tab-{tab}[aria-selected=true]")
    wait_until(page, "!document.querySelector('#panel[aria-busy], #panel .state[role=status], main[aria-busy]')")


def names(page: Page) -> list[str]:
    """Return the names in the list of runs."""
    return page.locator("tr[data-run] a.name").all_inner_texts()


def test_list_is_filtered_and_sorted(page: Page, runs: Runs) -> None:
    """Runs are shown with their state as text, and found by text, state and tag; no match has a text of its own."""
    page.wait_for_selector(f"tr[data-run='{runs.first}']")
    assert names(page) == ["gsm8k-second", "gsm8k-first"]
    assert page.locator(f"tr[data-run='{runs.first}'] .badge").inner_text() == "succeeded"

    page.get_by_role("button", name="Run", exact=True).click()
    wait_until(page, "document.querySelector('a.name').textContent === 'gsm8k-first'")
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Run")

    page.get_by_label("Tag", exact=True).select_option("sweep")
    wait_until(page, "document.querySelectorAll('tr[data-run]').length === 1")
    assert names(page) == ["gsm8k-first"]
    page.get_by_label("Tag", exact=True).select_option("")
    page.get_by_label("Search").fill("second")
    wait_until(page, "document.querySelector('a.name')?.textContent === 'gsm8k-second'")
    page.get_by_label("Search").fill("absent")
    page.get_by_text("No run matches these filters.").wait_for()


def test_curves_of_several_runs_are_overlaid(page: Page, runs: Runs) -> None:
    """Runs that are chosen in the list are drawn in one chart. A hidden run leaves it."""
    for number in range(2):
        page.locator("tr[data-run] input[type=checkbox]").nth(number).check()
    page.get_by_role("button", name="Compare 2 runs").click()
    page.get_by_role("button", name="Enlarge reward/avg_raw_reward").click()
    rows = page.locator("dialog tbody tr")
    rows.nth(1).wait_for()
    shown = {row.split("\t")[0].strip(): row.split("\t")[2:] for row in rows.all_inner_texts()}
    assert shown == {"gsm8k-first": ["1", "0.025", "1", "40"], "gsm8k-second": ["0.5", "0.01667", "0.5", "30"]}
    both = drawn_colors(page)
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")

    page.get_by_label("Show gsm8k-second").uncheck()
    page.get_by_role("button", name="Enlarge reward/avg_raw_reward").click()
    page.wait_for_selector("dialog tbody tr")

    assert len(both) == 2
    assert len(drawn_colors(page)) == 1


def drawn_colors(page: Page) -> list[str]:
    """Return the colors of curves that the enlarged chart contains."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelector('dialog canvas'), style = getComputedStyle(document.documentElement);
          const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
          const wanted = Array.from({ length: 10 }, (_, i) => style.getPropertyValue(`--s${i}`).trim());
          const found = new Set();
          for (let i = 0; i < pixels.length; i += 4) {
            const parts = [pixels[i], pixels[i + 1], pixels[i + 2]].map((value) => value.toString(16).padStart(2, '0'));
            if (pixels[i + 3] === 255) found.add(`#${parts.join('')}`);
          }
          return wanted.filter((color) => found.has(color));
        }"""
    )


def test_charts_are_zoomed_and_moved(page: Page, runs: Runs) -> None:
    """The keys and the mouse change the range of an enlarged chart; smoothing, log scale and time change its curves."""
    open_run(page, runs.first, query="?key=reward%2Favg_raw_reward")
    chart = page.locator("[data-big]")
    canvas = page.locator("dialog canvas")
    canvas.wait_for()
    image = canvas.screenshot

    whole = image()
    chart.press("+")
    zoomed = image()
    chart.press("ArrowRight")
    moved = image()
    chart.press("0")

    assert len({whole, zoomed, moved}) == 3
    assert image() == whole
    over = page.locator("dialog .u-over")
    over.hover(position={"x": 200, "y": 50})
    wait_until(page, "document.querySelector('dialog td[data-label=\"At cursor\"]').textContent !== ''")
    box = over.bounding_box()
    assert box is not None
    page.mouse.down()
    page.mouse.move(box["x"] + 500, box["y"] + 50, steps=3)
    page.mouse.up()
    page.mouse.move(0, 0)
    assert image() != whole
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Log scale").check()
    dialog.get_by_role("slider").fill("0.9")
    dialog.get_by_label("Horizontal axis").select_option("time")
    wait_until(page, "!document.querySelector('dialog .notice')")
    dialog.get_by_label("Log scale").uncheck()


def test_rollouts_are_filtered_ordered_and_side_by_side(page: Page, runs: Runs) -> None:
    """Rollouts are chosen by step and ordered by reward; the members of a group are beside each other."""
    open_run(page, runs.first, "rollouts")
    page.get_by_label("Step", exact=True).select_option("40")
    wait_until(page, "document.querySelectorAll('.member').length === 4")
    page.get_by_label("Order", exact=True).select_option("reward_desc")
    wait_until(page, "document.querySelector('.rollout-group')?.textContent.includes('reward 3')")

    rewards = page.locator(".member .reward").all_inner_texts()
    boxes = [member.bounding_box() for member in page.locator(".rollout-group").first.locator(".member").all()]
    assert sorted(rewards) == ["reward 0", "reward 1", "reward 2", "reward 3"]
    assert len(boxes) == 2
    left, right = boxes
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] < right["x"]
    roles = page.locator(".member:has-text('final 1') .role").all_inner_texts()
    assert roles == ["assistant", "user", "assistant"]
    fold = page.get_by_role("button", name="Show all")
    length = len(page.locator(".member").first.inner_text())
    fold.first.click()
    assert max(len(text) for text in page.locator(".member").all_inner_texts()) > length + 500


def test_phases_checkpoints_and_details(page: Page, runs: Runs) -> None:
    """The other tabs show what the run has written."""
    open_run(page, runs.first, "phases")
    assert page.locator("tbody tr:has-text('generate')").inner_text().split("\t")[-1] == "66.7 %"
    open_run(page, runs.first, "checkpoints")
    states = page.locator("tbody .badge").all_inner_texts()
    assert states == ["complete", "incomplete"]
    assert page.get_by_text("missing: trainer_state.pt").count() == 1
    open_run(page, runs.first, "details")
    assert page.locator("dd", has_text="trainer.ckpt_interval=10").count() == 1
    open_run(page, runs.second, "rollouts")
    page.get_by_text("No rollouts.").wait_for()
    page.evaluate("location.hash = '#/run/absent/metrics'")
    page.get_by_role("heading", name="Not found").wait_for()


def test_hostile_content_is_text(page: Page, runs: Runs) -> None:
    """Markup of a run is shown as text, control characters are left out, long lines are cut; no script is executed."""
    for tab in TABS:
        open_run(page, runs.first, tab)
        assert page.locator("main script, main img").count() == 0
        text = page.locator("main").inner_text()
        assert not any(character in text for character in "\x1b\u202e\x00")
    open_run(page, runs.first, "metrics")
    assert page.get_by_role("button", name="Enlarge <script>window.hacked = 1</script><img s").count() == 1
    open_run(page, runs.first, "log")
    lines = page.locator(".log .line .text").all_inner_texts()
    assert lines[0] == "first line"
    assert lines[1].startswith("<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>red")
    assert lines[2] == "invalid \ufffd\ufffd UTF-8"
    assert lines[3].startswith("x" * 1000)
    assert lines[3].endswith("(cut)")
    assert len(lines[3]) < 5000
    page.get_by_label("Search").fill("last")
    wait_until(page, "document.querySelectorAll('.log .line').length === 1")
    assert page.locator(".log mark").inner_text() == "last"


def test_page_is_usable_with_the_keyboard(page: Page, runs: Runs) -> None:
    """Every step from the list to an enlarged chart and back has a key, and the focus follows."""
    focus = "document.activeElement.closest('tr')?.dataset.run ?? document.activeElement.id"
    page.wait_for_selector("tr[data-run]")
    page.keyboard.press("Tab")
    assert page.evaluate(focus) == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate(focus) == "main"
    page.keyboard.press("j")
    assert page.evaluate(focus) == runs.second
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focus) == runs.first
    page.keyboard.press("k")
    assert page.evaluate(focus) == runs.second
    page.keyboard.press("Enter")
    page.wait_for_selector("#tab-metrics")
    page.locator("#tab-metrics").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#tab-rollouts[aria-selected=true]")
    assert page.evaluate(focus) == "tab-rollouts"
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".chart .open")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.type") == "search"
    page.locator(".chart .open").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    assert page.evaluate("document.activeElement.className") == "open data"
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()


def test_live_run_is_updated_and_cancelled(
    page: Page, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A logged step reaches the page by itself; the time until then is reported. Then the run is cancelled."""
    code = (
        "import time; from skyrl_modal import log_metrics\n"
        "for step in range(1, 100000):\n"
        "    log_metrics({'reward/avg_raw_reward': step}, step=step); print('line', step, flush=True); time.sleep(0.4)"
    )
    run = small_launcher("gsm8k-live").submit([sys.executable, "-c", code])
    try:
        page.locator(f"tr[data-run='{run.id}'] .badge", has_text="running").wait_for()
        open_run(page, run.id)
        page.wait_for_selector(".chart .last:not(:empty)")
        page.evaluate(
            """() => {
              window.seen = [];
              const last = document.querySelector('.chart .last');
              const observer = new MutationObserver(() => seen.push([Number(last.textContent), Date.now() / 1000]));
              observer.observe(last, { childList: true, characterData: true, subtree: true });
            }"""
        )
        wait_until(page, "seen.length >= 8")
        seen = dict(page.evaluate("seen"))
        times = page.evaluate(
            "(url) => fetch(url).then((answer) => answer.json()).then((answer) => answer.series[0])",
            f"/api/series?run={run.id}&key=reward%2Favg_raw_reward&x=time&points=20000",
        )
        logged = dict(zip(times["y"], times["x"], strict=True))
        delays = [moment - logged[step] for step, moment in seen.items() if step in logged]
        report = f"{len(delays)} steps, median {statistics.median(delays):.2f} s, longest {max(delays):.2f} s"
        record_property("seconds until a logged step is shown", report)
        with capsys.disabled():
            print(f"\nlive update: {report}")
        assert all(delay > -0.01 for delay in delays)

        page.get_by_role("tab", name="Log").click()
        page.wait_for_selector(".log .line")
        count = page.locator(".log .line").count()
        wait_until(page, "count => document.querySelectorAll('.log .line').length > count", count)
        page.get_by_role("button", name="Cancel the run").click()
        dialog = page.get_by_role("dialog", name="Cancel this run?")
        assert page.evaluate("document.activeElement.textContent") == "Keep it running"
        dialog.get_by_role("button", name="Cancel the run").click()
        page.locator(".run-head .badge", has_text="cancelled").wait_for()
        assert page.get_by_role("button", name="Cancel the run").count() == 0
    finally:
        run.cancel(now=True)


def test_a_lost_connection_is_visible(new_page: NewPage, runs: Runs) -> None:
    """When the server has ended, the page shows that it is disconnected. Actions are permitted by an option only."""
    with serving() as server:
        page = new_page(url=server.url)
        page.locator("#connection[data-state=live]").wait_for()
        assert page.evaluate("fetch('/api/info').then((r) => r.json()).then((r) => r.allow_actions)") is False
    page.locator("#connection[data-state=lost]").wait_for()
    assert "Disconnected" in page.locator("#connection").inner_text()


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_token_is_required(browser: Browser, server: Server, token: str | None) -> None:
    """Without the token, or with a wrong one, neither the page nor the data is shown."""
    context = browser.new_context()
    try:
        page = context.new_page()
        answer = page.goto(server.base + ("/" if token is None else f"/?token={token}"))
        assert answer is not None
        assert answer.status == 401
        assert "skyrl-modal ui" in page.locator("body").inner_text()
        assert page.evaluate("fetch('/api/runs').then((r) => r.status)") == 401
    finally:
        context.close()


def test_other_origins_are_refused(page: Page, server: Server, runs: Runs) -> None:
    """A page of another origin in the same browser, which has the cookie, can neither read nor act nor embed."""
    other = http.server.HTTPServer(("127.0.0.1", 0), Empty)
    thread = threading.Thread(target=other.serve_forever)
    thread.start()
    try:
        foreign = page.context.new_page()
        foreign.goto(f"http://127.0.0.1:{other.server_port}/")
        read = "url => fetch(url, { credentials: 'include' }).then(() => 'read', () => 'refused')"
        assert foreign.evaluate(read, f"{server.base}/api/runs") == "refused"
        send = "url => fetch(url, { method: 'POST', credentials: 'include' }).then(() => 'sent', () => 'refused')"
        assert foreign.evaluate(send, f"{server.base}/api/runs/{runs.first}/cancel") == "refused"
        foreign.evaluate(
            "url => new Promise((done) => { const frame = document.createElement('iframe'); frame.src = url;"
            " frame.onload = done; document.body.append(frame); })",
            f"{server.base}/",
        )
        assert all(frame.locator("#main").count() == 0 for frame in foreign.frames)
    finally:
        other.shutdown()
        thread.join()
        other.server_close()


class Empty(http.server.BaseHTTPRequestHandler):
    """Answers with an empty page."""

    def do_GET(self) -> None:
        """Answer a request."""
        body = b"<!doctype html><title>other</title>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_views_are_accessible_and_fit(new_page: NewPage, runs: Runs, width: int, scheme: str) -> None:
    """No view has a violation of axe's rules, and none is wider than the window."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = new_page(width=width, height=844, scheme=scheme)
    found = []

    def check(view: str) -> None:
        for violation in axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]:
            found.append((view, violation["id"], [node["target"] for node in violation["nodes"]][:5]))
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found.append((view, "wider than the window", []))

    page.wait_for_selector("tr[data-run]")
    assert page.locator("html").get_attribute("data-theme") == scheme
    check("list")
    for tab in TABS:
        open_run(page, runs.first, tab)
        check(tab)
    open_run(page, runs.first, query="?key=loss%2Favg_kl")
    page.wait_for_selector("dialog tbody tr")
    check("enlarged")
    page.keyboard.press("Escape")
    page.evaluate("hash => { location.hash = hash; }", f"#/compare?run={runs.first}&run={runs.second}")
    page.wait_for_selector(".chart canvas")
    check("compare")
    page.evaluate("location.hash = '#/run/absent/metrics'")
    page.get_by_role("heading", name="Not found").wait_for()
    check("not found")

    assert found == []


def test_exported_file_needs_no_network(new_page: NewPage, runs: Runs, tmp_path: Path) -> None:
    """An exported file shows the tabs of a run from its own content, without a request and with the same safety."""
    path = tmp_path / "run.html"
    command = [sys.executable, "-m", "skyrl_modal", "export", runs.first, "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    page = new_page(url="about:blank")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))

    page.goto(path.as_uri())
    page.get_by_role("heading", name="gsm8k-first").wait_for()
    for tab in TABS:
        open_run(page, runs.first, tab)
        assert page.locator(".notice.error").count() == 0
        assert page.locator("main script, main img").count() == 0
    open_run(page, runs.first, query="?key=loss%2Favg_kl")
    page.wait_for_selector("dialog tbody tr")
    assert len(drawn_colors(page)) == 1
    assert page.locator("#connection").inner_text() == "Saved copy"
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_theme_is_switched_and_kept(page: Page) -> None:
    """The switch has precedence over the system's scheme, also after the page was loaded again."""
    theme = page.locator("#theme")
    for expected in ("light", "dark"):
        theme.click()
        assert page.locator("html").get_attribute("data-theme") == expected
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert theme.get_attribute("aria-label") == "Theme: dark"
