"""Rollouts of a run are read from the files on its volume, on every backend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skyrl_modal import Run, SpecError
from skyrl_modal.errors import PathNotFound
from tests.conftest import MakeLauncher

#: SkyRL's entrypoint in short: it writes the files of an evaluation as ``dump_per_dataset_eval_results`` does.
ENTRYPOINT = """
import json, os, sys
config = dict(argument.split("=", 1) for argument in sys.argv[1:])
for step in (0, 20):
    folder = os.path.join(config["trainer.export_path"], "dumped_evals", f"global_step_{step}_evals")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "openai_gsm8k.jsonl"), "w") as file:
        for number in range(4):
            row = {
                "input_prompt": f"<|im_start|>user\\nprompt {number // 2}<|im_end|>\\n<|im_start|>assistant\\n",
                "output_response": f"answer {number}<|im_end|>", "score": float(number), "stop_reason": "stop",
                "env_class": "gsm8k", "env_extras": {}, "data_source": "openai/gsm8k",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\\n")
        file.write("no rollout\\n")
    with open(os.path.join(folder, "aggregated_results.jsonl"), "w") as file:
        file.write('{"eval/all/avg_score": 1.5}\\n')
import skyrl_modal  # found through the hook of the run
skyrl_modal.log_rollouts([{"prompt": "t", "response": "r", "reward": 0.25, "group": "g"}], step=20)
"""


def add_entrypoint(checkout: Path) -> None:
    """Write the entrypoint to a checkout, where it is resolved as SkyRL's."""
    path = checkout / "skyrl/train/entrypoints/main_base.py"
    path.parent.mkdir(parents=True)
    path.write_text(ENTRYPOINT)
    for folder in (path.parent, path.parent.parent):
        (folder / "__init__.py").touch()


def test_dumped_evaluations(launcher: MakeLauncher, checkout: Path) -> None:
    """Evaluations are found by the arguments of the command, chosen by step and reward, and groups are together."""
    add_entrypoint(checkout)
    command = "python3 -m skyrl.train.entrypoints.main_base trainer.export_path=/root/data/exports/a"
    run = Run.attach(launcher().run(command, quiet=True, check=True).run_id)

    rollouts = run.rollouts(source="eval")

    assert [(each.step, each.source) for each in rollouts] == [(0, "eval/openai_gsm8k")] * 4 + [
        (20, "eval/openai_gsm8k")
    ] * 4
    assert [each.reward for each in run.rollouts(20)] == [0.0, 1.0, 2.0, 3.0, 0.25]
    assert [each.group == rollouts[0].group for each in run.rollouts(20)] == [True, True, False, False, False]
    assert [each.reward for each in run.rollouts(step=0, best=2, worst=1)] == [3.0, 2.0, 0.0]
    assert f"{rollouts[0]}" == ("step 0  reward 0  stop  eval/openai_gsm8k\n[user]\nprompt 0\n[assistant]\nanswer 0")
    assert [(each.step, each.response, each.group) for each in run.rollouts(source="train")] == [(20, "r", "g")]
    assert run.rollouts(source="eval/other") == []
    assert rollouts.skipped == 2


def test_files_by_path(launcher: MakeLauncher) -> None:
    """A file or folder on the volume is read by its path in the container. Wrong paths and numbers are refused."""
    line = json.dumps({"step": 3, "prompt": "q", "response": "a", "reward": 0.5})
    command = f"mkdir -p /root/data/ppo/x; printf '%s\\n' '{line}' '{line}' no-json > /root/data/ppo/x/rollouts.jsonl"
    run = Run.attach(launcher().run(command, quiet=True, check=True).run_id)

    for path in ("/root/data/ppo/x/rollouts.jsonl", "/root/data/ppo"):
        rollouts = run.rollouts(path=path)
        assert [(each.step, each.response, each.source) for each in rollouts] == [(3, "a", "file")] * 2
        assert rollouts.skipped == 1
    assert run.rollouts() == []
    with pytest.raises(SpecError, match="on no volume"):
        run.rollouts(path="/etc/passwd")
    with pytest.raises(PathNotFound):
        run.rollouts(path="/root/data/absent")
    with pytest.raises(SpecError, match="best=-1"):
        run.rollouts(best=-1)
