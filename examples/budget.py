"""Compare what trainings cost, and limit each of them in money.

    python examples/budget.py --backend local --rate 3600 --budget 3
    python examples/budget.py --backend modal --gpu H100:1 --budget 20

On this machine a run costs nothing, unless `--rate` gives what the machine costs per hour.
"""

from __future__ import annotations

import argparse

from skyrl_modal import Launcher, RunState

#: Shell code in place of a training, which stops after its current step if it is asked to.
TRAINING = """
trap 'echo "step=$step saved"; exit 0' INT TERM
for step in $(seq 1 "$STEPS"); do sleep 0.2; done
echo "step=$STEPS finished"
"""


def main() -> None:
    """Show the plan, run two trainings, and print what a step has cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="local")
    parser.add_argument("--gpu", default="L4:1")
    parser.add_argument("--rate", type=float, help="US dollars per hour and node; on Modal, your workspace's rates")
    parser.add_argument("--budget", type=float, default=20.0, help="US dollars for each training")
    parser.add_argument("--checkout")
    options = parser.parse_args()

    launcher = Launcher(
        backend=options.backend,
        gpu=options.gpu,
        rate=options.rate,
        budget=options.budget,
        checkout=options.checkout,
        ray=None,
        tags=["budget-example"],
    )
    plan = launcher.plan(TRAINING)
    print(f"cost: {plan.cost}")

    for steps in (5, 1000):
        result = launcher.run(f"STEPS={steps}\n{TRAINING}", quiet=True)
        ending = "over the budget" if result.state is RunState.OVER_BUDGET else result.state
        cost = "unknown" if result.cost is None else f"${result.cost:.2f}"
        print(f"{steps} steps: {ending}, exit code {result.returncode}, {cost}", flush=True)


if __name__ == "__main__":
    main()
