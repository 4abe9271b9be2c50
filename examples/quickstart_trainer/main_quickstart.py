"""Train a small policy with GRPO in skyrl_gym's gsm8k environment, with the arguments and the files of SkyRL.

    bash run_quickstart.sh trainer.epochs=2 trainer.ckpt_path=/root/data/ckpts/mine

With the variable RAY_ADDRESS it trains in a task on that cluster, as SkyRL's trainers do. Without, in this process.
"""

from __future__ import annotations

import logging
import os
import sys


def train_on_ray(root: str, arguments: list[str]) -> None:
    """Train in a task on the Ray cluster at RAY_ADDRESS.

    Args:
        root: The SkyRL checkout.
        arguments: ``key=value`` arguments.
    """
    import ray  # imported here, since a run without Ray does not need it

    # It waits for the rollouts most of the time, so it reserves no CPU.
    @ray.remote(num_cpus=0, max_retries=0)
    def skyrl_entrypoint(root: str, arguments: list[str]) -> None:
        # A worker has the environment of Ray's processes, which may differ from that of this process.
        os.environ["SKYRL_REPO_ROOT"] = root
        import training

        training.train(arguments, use_ray=True)

    ray.init(address=os.environ["RAY_ADDRESS"], logging_level=logging.WARNING)
    ray.get(skyrl_entrypoint.remote(root, arguments))


def main() -> None:
    """Parse the arguments, and train."""
    from skyrl_modules import ROOT, QuickstartConfig

    arguments = sys.argv[1:]
    QuickstartConfig.from_cli_overrides(arguments)  # refuses unknown keys, before Ray is used
    if "RAY_ADDRESS" in os.environ:
        train_on_ray(str(ROOT), arguments)
    else:
        import training

        training.train(arguments, use_ray=False)
    print("training done", flush=True)


if __name__ == "__main__":
    main()
