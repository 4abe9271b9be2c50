"""Small local runs for the tests of the page. They log metrics, and write rollouts, checkpoints and hostile output."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from skyrl_modal import Launcher, VolumeSpec
from tests.support.checkpoint_folders import write_checkpoint

#: Text that must be shown as it is: markup, ANSI escape sequences, and characters that change the order of text.
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\x1b[31mred\x1b[0m\u202egpj.exe"

#: SkyRL's entrypoint in short: it logs metrics and writes evaluations. Its output is hostile.
ENTRYPOINT = r"""
import json, os, shutil, sys
from skyrl_modal import log_metrics

config = dict(argument.split("=", 1) for argument in sys.argv[1:])
hostile = json.loads(config["hostile"])
for step in range(1, 41):
    reward = step / 40
    log_metrics({
        "reward/avg_raw_reward": reward, "reward/avg_pass_at_8": reward ** 0.5, "loss/avg_kl": 1 / step,
        "policy/grad_norm": float("nan") if step == 7 else 2 - reward, "timing/step": 3.0, "timing/generate": 2.0,
        "timing/sync_weights": 1.0, hostile[:40]: reward,
    }, step=step)
for step in (20, 40):
    folder = os.path.join(config["trainer.export_path"], "dumped_evals", f"global_step_{step}_evals")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "openai_gsm8k.jsonl"), "w") as file:
        for number in range(4):
            turn = f"<|im_end|>\n<|im_start|>user\nturn {number}<|im_end|>\n<|im_start|>assistant\nfinal {number}"
            row = {
                "input_prompt": f"<|im_start|>user\nprompt {number // 2}<|im_end|>\n<|im_start|>assistant\n",
                "output_response": f"answer {number} {hostile}" + " long" * 400 * (number == 3) + turn * (number == 1),
                "score": float(number), "stop_reason": "stop", "env_class": "gsm8k", "env_extras": {},
                "data_source": "openai/gsm8k",
            }
            file.write(json.dumps(row) + "\n")
shutil.copytree("ckpts", config["trainer.ckpt_path"], dirs_exist_ok=True)
print("first line")
print(hostile)
sys.stdout.flush()
sys.stdout.buffer.write(b"invalid \xff\xfe UTF-8\n" + b"x" * 10_000_000 + b"\n")
sys.stdout.buffer.flush()
print("last line")
"""


def make_checkout(root: Path) -> Path:
    """Write a checkout whose command is resolved as one of SkyRL."""
    for name, text in {
        "skyrl-gym/skyrl_gym/__init__.py": "",
        "skyrl/__init__.py": "",
        "skyrl/train/__init__.py": "",
        "skyrl/train/entrypoints/__init__.py": "",
        "skyrl/train/entrypoints/main_base.py": ENTRYPOINT,
        "pyproject.toml": '[project]\nname = "skyrl"\nversion = "0"\ndependencies = ["ray==2.57.0"]\n',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    write_checkpoint(root / "ckpts", 10)
    (write_checkpoint(root / "ckpts", 20) / "trainer_state.pt").unlink()
    return root


def run_training(checkout: Path) -> str:
    """Execute the entrypoint, and return the id of the run."""
    launcher = Launcher(
        backend="local", checkout=checkout, ray=None, gpu=None, volumes=[VolumeSpec(name="browser-tests")],
        name="gsm8k-first", tags=["sweep"],
    )  # fmt: skip
    command = [
        "python3", "-m", "skyrl.train.entrypoints.main_base", "trainer.export_path=/root/data/exports",
        "trainer.ckpt_path=/root/data/ckpts", "trainer.ckpt_interval=10", f"hostile={json.dumps(HOSTILE)}",
    ]  # fmt: skip
    return launcher.run(command, output=io.BytesIO(), quiet=True, check=True).run_id


def small_launcher(name: str) -> Launcher:
    """Return a launcher for a command without files."""
    return Launcher(backend="local", mounts=[], ray=None, volumes=[VolumeSpec(name="browser-tests")], name=name)


def run_small(name: str, code: str) -> str:
    """Execute Python code as a run, and return its id."""
    return small_launcher(name).run([sys.executable, "-c", code], output=io.BytesIO(), quiet=True).run_id
