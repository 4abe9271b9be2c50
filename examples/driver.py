"""Embed the launcher in a training driver that reads the output of its runs.

    python examples/driver.py --backend local
    python examples/driver.py --backend modal --parallel 8

The driver runs the training in a thread, and passes a callable that receives the output and reads the metrics from it.
Only the driver prints to standard output. Then it runs several trainings in parallel.
"""

from __future__ import annotations

import argparse
import queue
import re
import sys
import threading
from pathlib import Path

from skyrl_modal import Launcher, RunResult, SkyRLModalError

#: Shell code in place of a training. It prints a reward for each step, and fails if the learning rate is too high.
TRAINING = """
for step in 1 2 3 4 5; do echo "step=$step reward=0.$((step * $LR_TIMES_TEN))"; sleep 0.1; done
if [ $LR_TIMES_TEN -gt 1 ]; then echo "loss is nan" >&2; exit 3; fi
"""


class Metrics:
    """Receives the output of a run, in pieces of any size, and queues the rewards."""

    def __init__(self) -> None:
        self.rewards: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._rest = b""

    def __call__(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if found := re.search(rb"reward=([\d.]+)", line):
                self.rewards.put(float(found[1]))


def watch_one(launcher: Launcher) -> RunResult:
    """Run the training in a thread, and process its rewards as they arrive."""
    metrics, results = Metrics(), []

    def work() -> None:
        try:
            results.append(launcher.run(f"LR_TIMES_TEN=1\n{TRAINING}", output=metrics, quiet=True))
        finally:
            metrics.rewards.put(None)

    thread = threading.Thread(target=work, name="training")
    thread.start()
    best = 0.0
    while (reward := metrics.rewards.get()) is not None:
        best = max(best, reward)
        print(f"driver: reward {reward:.1f}, best {best:.1f}", flush=True)
    thread.join()
    if not results:
        raise SystemExit("driver: the training did not return a result")
    return results[0]


def sweep(launcher: Launcher, parallel: int) -> list[RunResult]:
    """Run several trainings in parallel. A failed one does not stop the others."""
    rates = (1, 2, 1)
    results = launcher.map([f"LR_TIMES_TEN={rate}\n{TRAINING}" for rate in rates], max_parallel=parallel, quiet=True)
    for rate, result in zip(rates, results, strict=True):
        last = result.log_tail.splitlines()[-1:]
        print(f"driver: rate 0.{rate}: {result.state}, exit code {result.returncode}, last line {last}", flush=True)
    return results


def main() -> int:
    """Run the driver."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("local", "modal"), default="local")
    parser.add_argument("--checkout", type=Path, help="a SkyRL checkout (default: found automatically)")
    parser.add_argument("--parallel", type=int, default=2, help="number of parallel runs (default: 2)")
    args = parser.parse_args()
    # This training needs neither a GPU nor Ray. Omit both arguments for a real training.
    launcher = Launcher(backend=args.backend, checkout=args.checkout, gpu=None, ray=None, timeout="15m")
    one = watch_one(launcher)
    print(f"driver: {one.state} after {one.duration:.1f} s; complete output: {one.log_path}")
    results = sweep(launcher, args.parallel)
    return 0 if one.succeeded and [result.returncode for result in results] == [0, 3, 0] else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SkyRLModalError as error:
        sys.exit(f"driver: {error}")
