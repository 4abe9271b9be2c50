"""Measure the page in Chromium with the real server: ``python -m tests.browser.measure``. It needs about a minute.

The list has 1,000 runs, which are copies of one real run. 20 of them have 100,000 values of two metrics each.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from playwright.sync_api import sync_playwright

from skyrl_modal.formats.metrics_writer import METRICS_FOLDER, MetricsFile
from skyrl_modal.run.index import RunIndex
from skyrl_modal.user_folders import state_folder
from tests.browser.conftest import ARGUMENTS, CHROMIUM, serving
from tests.browser.sample_runs import run_small

if TYPE_CHECKING:
    from playwright.sync_api import Page

RUNS, CURVES, STEPS = 1_000, 20, 100_000
KEYS = ("reward/avg_raw_reward", "loss/avg_kl")


def make_runs() -> list[str]:
    """Execute one run, copy it, and return the ids of the runs with curves."""
    original = run_small("measured", "print('done')")
    record = RunIndex().get(original)
    folder = Path(str(record.handle["run_folder"]))
    text = (state_folder() / "index" / f"{original}.json").read_text()
    written = [folder / name for name in ("job.json", "result.json", "state.json")]
    ids = []
    for number in range(RUNS - 1):
        run_id = f"20260101-{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}-{number:06x}"
        copy = folder.with_name(run_id)
        copy.mkdir()
        for path in written:
            if path.exists():
                (copy / path.name).write_text(path.read_text().replace(original, run_id))
        shutil.copy(folder / "output.log", copy)
        new = json.loads(text.replace(original, run_id))
        new["job"]["name"] = f"run-{number}"
        (state_folder() / "index" / f"{run_id}.json").write_text(json.dumps(new))
        ids.append(run_id)
    chosen = ids[-CURVES:]
    for number, run_id in enumerate(chosen):
        target = folder.with_name(run_id)
        if number < 4:
            write_curves(target, number)
        else:
            shutil.copytree(folder.with_name(chosen[number % 4]) / METRICS_FOLDER, target / METRICS_FOLDER)
    return chosen


def write_curves(folder: Path, seed: int) -> None:
    """Write noisy curves, with rare extremes."""
    noise = random.Random(seed)
    file = MetricsFile(str(folder), attempt=1, started_at=1.0, rank=0)
    for step in range(STEPS):
        value = 1 - math.exp(-step / (10_000 * (seed + 1))) + noise.gauss(0, 0.05) + (step % 20_000 == 7)
        file.append("log_metrics", step, dict.fromkeys(KEYS, value))


class Stopwatch:
    """Measures steps: time, and processor time of the server and of the page's main thread.

    Args:
        page: The page.
        pid: The server's process.
    """

    def __init__(self, page: Page, pid: int) -> None:
        self._server = psutil.Process(pid)
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self._begin = self._now()

    def _now(self) -> tuple[float, float, float]:
        metrics = {item["name"]: item["value"] for item in self._session.send("Performance.getMetrics")["metrics"]}
        times = self._server.cpu_times()
        return time.perf_counter(), times.user + times.system, metrics["TaskDuration"]

    def start(self) -> None:
        """Begin a step."""
        self._begin = self._now()

    def stop(self) -> tuple[float, float, float]:
        """Return the seconds of the step: time, processor time of the server, and of the page."""
        now = self._now()
        page = now[2] - self._begin[2]
        # A new document counts from 0.
        return now[0] - self._begin[0], now[1] - self._begin[1], page if page >= 0 else now[2]


def report(name: str, steps: list[tuple[float, float, float]]) -> None:
    """Print medians in milliseconds."""
    wall, server, page = (1000 * statistics.median(step[i] for step in steps) for i in range(3))
    print(f"{name}: {wall:.0f} ms; processor: server {server:.0f} ms, page {page:.0f} ms (n={len(steps)})", flush=True)


def measure(page: Page, url: str, base: str, pid: int, runs: list[str]) -> None:
    """Measure the list, the enlarged chart, and its movement."""
    page.set_default_timeout(300_000)
    page.goto(url)
    page.wait_for_selector("tr[data-run]")
    watch = Stopwatch(page, pid)
    steps = []
    for _ in range(7):
        watch.start()
        page.reload(wait_until="commit")
        page.wait_for_selector("tr[data-run]")
        steps.append(watch.stop())
    report(f"{page.locator('.run-head .muted').inner_text()}: from the reload to the rows", steps)
    query = "&".join(f"run={run}" for run in runs)
    for attempt in ("first", "again"):
        watch.start()
        page.evaluate("hash => { location.hash = hash; }", f"#/compare?{query}")
        page.wait_for_selector(".chart canvas")
        report(f"compare {CURVES} runs, {attempt}", [watch.stop()])
        watch.start()
        page.locator(".chart .open").first.click()
        page.wait_for_selector("dialog canvas")
        report(f"{CURVES} curves of {STEPS:,} values, {attempt}: from the click to the chart", [watch.stop()])
        if attempt == "first":
            page.evaluate("location.hash = '#/'")
            page.wait_for_selector("tr[data-run]")
    chart = page.locator("[data-big]")
    drawn = float(chart.get_attribute("data-drawn") or "nan")
    print(f"    of this, drawing: {drawn:.0f} ms")
    watch.start()
    moves = page.evaluate(
        """async () => {
          const chart = document.querySelector('[data-big]');
          const frame = () => new Promise(requestAnimationFrame);
          for (let i = 0; i < 3; i += 1) chart.dispatchEvent(new KeyboardEvent('keydown', { key: '+' }));
          for (let i = 0; i < 60; i += 1) {
            chart.dispatchEvent(new KeyboardEvent('keydown', { key: i % 20 < 10 ? 'ArrowRight' : 'ArrowLeft' }));
            await frame();
          }
          return 60;
        }"""
    )
    report("a movement", [tuple(value / moves for value in watch.stop())])  # type: ignore[list-item]
    watch.start()
    with page.expect_response(lambda response: "from=" in response.url) as response:
        chart.press("+")
    response.value.finished()
    report("the request after a zoom, with a delay of 120 ms", [watch.stop()])


def main() -> None:
    """Measure, and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("CONFIG", "DATA", "STATE", "CACHE"):
            os.environ[f"XDG_{name}_HOME"] = f"{folder}/{name}"
        runs = make_runs()
        with serving() as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
            measure(
                browser.new_page(viewport={"width": 1440, "height": 900}),
                server.url,
                server.base,
                server.process.pid,
                runs,
            )
            browser.close()


if __name__ == "__main__":
    main()
