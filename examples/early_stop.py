"""Follow the metrics of a run, and cancel it when a metric has reached a target.

    python examples/early_stop.py --backend local
    python examples/early_stop.py --backend modal --key reward/avg_raw_reward --target 0.7 \
        -- bash examples/train/gsm8k/run_gsm8k.sh

Without a command, a small program takes the place of a training. It logs its rewards with ``log_metrics``; what SkyRL's
own trainers log is recorded without a change.
"""

from __future__ import annotations

import argparse
import sys

from skyrl_modal import Launcher, SkyRLModalError

TRAINING = """
import time
from skyrl_modal import log_metrics

for step in range(1, 1001):
    log_metrics({"reward": 1 - 0.9**step, "loss": 0.9**step}, step=step)
    time.sleep(0.05)
"""


def main() -> int:
    """Run the training until its metric has reached the target. Return 0 if it has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="local", help="local or modal (default: local)")
    parser.add_argument("--key", default="reward", help="the metric (default: reward)")
    parser.add_argument("--target", type=float, default=0.8, help="the value at which to stop (default: 0.8)")
    parser.add_argument("command", nargs="*", help="the training")
    options = parser.parse_args()

    if options.command:
        run = Launcher(backend=options.backend).submit(options.command)
    else:
        run = Launcher(backend=options.backend, mounts=[], ray=None, gpu=None).submit(["python3", "-c", TRAINING])
    for row in run.metrics(follow=True):
        value = row.get(options.key)
        if value is None:
            continue
        print(f"step {row['step']}: {options.key} {value:.3f}", flush=True)
        if value >= options.target:
            run.cancel()
            break
    result = run.wait()
    print(f"{result.state} after {result.duration:.0f} s; {run.metrics()}")
    reached = run.metrics().series(options.key)[1]
    return 0 if reached and max(reached) >= options.target else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SkyRLModalError as error:
        sys.exit(str(error))
