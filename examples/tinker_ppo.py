"""SkyRL's Tinker PPO example on Modal: dependencies in the image, three volumes, and a server with its client.

    python examples/tinker_ppo.py --max-train-steps 2      # arguments are passed to the client

It does what examples/tinker/ppo/modal_run.py of SkyRL does. The first step, without a GPU, prepares the data set once.
The second runs server and client in one container. WANDB_API_KEY and HF_TOKEN are optional.
"""

from __future__ import annotations

import shlex
import sys

import attrs

from skyrl_modal import AptInstall, ImageSpec, Launcher, RunCommands, SecretSpec, SetEnv, UvSync, VolumeSpec

DATA, CHECKPOINTS, HF_CACHE = "/root/data/gsm8k", "/root/ckpts/gsm8k_ppo_tinker", "/root/.cache/huggingface"
BASE_URL = "http://localhost:8000"

image = ImageSpec(
    base="nvidia/cuda:12.8.1-devel-ubuntu22.04",
    python="3.12",
    steps=[
        AptInstall(["git", "curl", "build-essential", "ca-certificates", "libnuma1", "numactl"]),
        RunCommands("curl -LsSf https://astral.sh/uv/install.sh | sh"),
        SetEnv({"PATH": "/root/.local/bin:/usr/local/cuda/bin:${PATH}", "HF_HOME": HF_CACHE}),
        UvSync(extras=["tinker", "fsdp"], gpu="any"),  # some packages look for CUDA when they are installed
    ],
)
train = Launcher(
    name="tinker-ppo",
    image=image,
    gpu="H100:4",
    timeout="24h",
    ray=None,  # the server starts Ray itself
    volumes=[
        VolumeSpec(name="skyrl-tinker-ppo-data"),
        VolumeSpec(name="skyrl-tinker-ppo-ckpts", mount_path="/root/ckpts"),
        VolumeSpec(name="skyrl-hf-cache", mount_path=HF_CACHE),
    ],
    secrets=[SecretSpec(name, source="environment", optional=True) for name in ("WANDB_API_KEY", "HF_TOKEN")],
    env={"TINKER_API_KEY": "tml-dummy", "TINKER_PPO_URL": BASE_URL},
)
prepare = attrs.evolve(train, name="tinker-ppo-data", gpu=None, timeout="2h")

PREPARE = f"""
if [ -f {DATA}/train.parquet ] && [ -f {DATA}/validation.parquet ]; then echo "the data set exists"; exit; fi
uv run --extra tinker python examples/train/gsm8k/gsm8k_dataset.py --output_dir {DATA}
"""
SERVER_AND_CLIENT = f"""
bash examples/tinker/ppo/run_tinker_server.sh &
server=$!
for attempt in $(seq 360); do  # 30 minutes: it downloads the model and starts its engines
    curl --silent --fail --output /dev/null "$TINKER_PPO_URL/docs" && ready=1 && break
    kill -0 $server 2>/dev/null || {{ wait $server; echo "the server exited with code $?" >&2; exit 1; }}
    sleep 5
done
[ -n "${{ready:-}}" ] || {{ echo "the server was not ready after 30 minutes" >&2; exit 1; }}
uv run --extra tinker python examples/tinker/ppo/ppo_client.py \\
    --base-url "$TINKER_PPO_URL" --data-dir {DATA} --output-dir {CHECKPOINTS}"""


def main(arguments: list[str]) -> int:
    """Prepare the data, and train. Return the exit code of the client."""
    prepare.run(PREPARE, check=True)
    # Processes that are still running when the command ends, such as the server, are stopped with the run.
    return train.run(f"{SERVER_AND_CLIENT} {shlex.join(arguments)}").returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
