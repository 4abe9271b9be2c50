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


def report(name: str, seconds: list[float]) -> None:
    """Print a median and the extremes."""
    values = sorted(1000 * value for value in seconds)
    print(f"{name}: median {statistics.median(values):.0f} ms ({values[0]:.0f} to {values[-1]:.0f}, n={len(values)})")


def wait(page: Page, expression: str) -> None:
    """Wait until an expression is true; the page does not permit ``page.wait_for_function``."""
    while not page.evaluate(expression):
        time.sleep(0.002)


def measure(page: Page, url: str, base: str, runs: list[str]) -> None:
    """Measure the list, the enlarged chart, and its movement."""
    page.set_default_timeout(300_000)
    page.goto(url)
    page.wait_for_selector("tr[data-run]")
    times, requests = [], []
    for _ in range(7):
        page.goto("about:blank")
        page.goto(f"{base}/#/")
        page.wait_for_selector("tr[data-run]")
        # From the start of the navigation to the frame after the rows were added.
        times.append(
            page.evaluate("new Promise((done) => requestAnimationFrame(() => done(performance.now() / 1000)))")
        )
        requests.append(
            page.evaluate(
                "performance.getEntriesByType('resource').find((e) => e.name.includes('/api/runs')).duration / 1000"
            )
        )
    print(page.locator(".run-head .muted").inner_text())
    report("list: from the navigation to the rows", times)
    report("list: request of 100 rows", requests)
    query = "&".join(f"run={run}" for run in runs)
    for attempt in ("first", "again"):
        page.goto("about:blank")
        page.goto(f"{base}/#/compare?{query}")
        start = time.perf_counter()
        page.wait_for_selector(".chart canvas")
        report(f"{CURVES} runs, {attempt}: until the small charts are drawn", [time.perf_counter() - start])
        start = time.perf_counter()
        page.evaluate(
            "[...document.querySelectorAll('.chart .open')].find((b) => b.title === 'reward/avg_raw_reward').click()"
        )
        page.wait_for_selector("dialog canvas")
        shown = time.perf_counter() - start
        drawn = float(page.locator("[data-big]").get_attribute("data-drawn") or "nan") / 1000
        report(f"{CURVES} curves of {STEPS:,} values, {attempt}: from the click to the chart", [shown])
        report("    of this, drawing", [drawn])
    frames = page.evaluate(
        """async () => {
          const chart = document.querySelector('[data-big]'), times = [];
          const frame = () => new Promise(requestAnimationFrame);
          for (let i = 0; i < 3; i += 1) chart.dispatchEvent(new KeyboardEvent('keydown', { key: '+' }));
          for (let i = 0; i < 60; i += 1) {
            const start = performance.now();
            chart.dispatchEvent(new KeyboardEvent('keydown', { key: i % 20 < 10 ? 'ArrowRight' : 'ArrowLeft' }));
            await Promise.resolve();
            times.push((performance.now() - start) / 1000);
            await frame();
          }
          return times;
        }"""
    )
    report("    of a movement", frames)
    start = time.perf_counter()
    with page.expect_response(lambda response: "from=" in response.url) as response:
        page.locator("[data-big]").press("+")
    response.value.finished()
    report("    of the request after a zoom, with the delay of 120 ms", [time.perf_counter() - start])
    size = page.evaluate(
        "performance.getEntriesByType('resource').filter((e) => e.name.includes('/api/series')).at(-1).transferSize"
    )
    print(f"    bytes of that answer: {size:,}")


def main() -> None:
    """Measure, and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("CONFIG", "DATA", "STATE", "CACHE"):
            os.environ[f"XDG_{name}_HOME"] = f"{folder}/{name}"
        runs = make_runs()
        with serving() as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
            measure(browser.new_page(viewport={"width": 1440, "height": 900}), server.url, server.base, runs)
            browser.close()


if __name__ == "__main__":
    main()
