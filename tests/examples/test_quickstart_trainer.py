"""Tests of the quickstart's trainer: its arguments, its files, its behaviour when it is killed, and its task."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.moments import MomentServer

TRAINER = Path(__file__).resolve().parents[2] / "examples" / "quickstart_trainer"
POINTER = "latest_ckpt_global_step.txt"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the dataset."""
    folder = tmp_path_factory.mktemp("dataset")
    command = [sys.executable, str(TRAINER / "prepare.py"), "--output-dir", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def torch_files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module that reads the files of checkpoints."""
    monkeypatch.syspath_prepend(str(TRAINER))
    return importlib.import_module("torch_files")


class Training:
    """Trainings that write their checkpoints to one folder.

    Args:
        folder: The folder.
        dataset: The folder of the dataset.
        checkout: The SkyRL checkout.
        variables: Further variables.

    Attributes:
        ckpts: The folder of checkpoints.
        environment: The variables of the next training.
    """

    def __init__(self, folder: Path, dataset: Path, checkout: Path, **variables: str) -> None:
        self.ckpts = folder / "ckpts"
        self._arguments = [
            f"data.train_data=['{dataset}/train.jsonl']",
            f"data.val_data=['{dataset}/validation.jsonl']",
            f"trainer.ckpt_path={self.ckpts}",
            f"trainer.export_path={folder}/exports",
            "trainer.max_training_steps=24",
        ]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        python = str(Path(sys.executable).parent)
        path = f"{python}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**environment, "PATH": path, "SKYRL_REPO_ROOT": str(checkout), **variables}

    def run(self, *overrides: str) -> tuple[int, str]:
        """Train, and return the exit code and the output."""
        command = ["bash", str(TRAINER / "run_quickstart.sh"), *self._arguments, *overrides]
        done = subprocess.run(
            command, env=self.environment, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode, done.stdout

    def finish(self, *overrides: str) -> str:
        """Train to the end, and return the output."""
        returncode, output = self.run(*overrides)
        assert returncode == 0, output
        return output

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints."""
        return sorted(int(path.name.rpartition("_")[2]) for path in self.ckpts.glob("global_step_*"))


def metrics(output: str) -> dict[int, str]:
    """Return what was logged for each step, without durations."""
    found = re.findall(r" - Step (\d+): \n((?:[^\n]*(?:'|\d)[,}]\n)+)", re.sub(r"\x1b\[[\d;]*m", "", output))
    return {int(step): re.sub(r" 'timing/step': '[\d.]+',\n", "", text) for step, text in found}


def same_state(torch_files: ModuleType, first: Path, second: Path) -> bool:
    """Return whether two checkpoints have the same weights and state of the optimizer, bit for bit."""
    names = sorted(path.name for path in (first / "policy").glob("*.pt"))
    assert names == sorted(path.name for path in (second / "policy").glob("*.pt"))
    assert names
    pairs = [(torch_files.load(first / "policy" / name), torch_files.load(second / "policy" / name)) for name in names]
    return all(
        found.keys() == expected.keys()
        and all(np.array_equal(np.asarray(found[key]), np.asarray(expected[key])) for key in expected)
        for expected, found in pairs
    )


def kill_at(moment: str, training: Training, folder: Path, *overrides: str) -> list[str]:
    """Train until a moment, kill the trainer there, and return the moments up to it."""
    seen: list[str] = []

    def on_moment(reached: str, pid: int) -> bool:
        seen.append(reached)
        if reached == moment:
            os.kill(pid, signal.SIGKILL)
        return reached != moment

    environment = training.environment
    with MomentServer(folder / "moments", on_moment) as server:
        training.environment = environment | server.environment
        returncode, output = training.run(*overrides)
    training.environment = environment
    assert returncode == -signal.SIGKILL, output  # the script replaces the shell by the trainer
    return seen


@pytest.mark.parametrize("moment", ["step 13 after its metrics", "half of policy/optim_world_size_1_rank_0.pt"])
def test_killed_training_resumes_with_the_same_result(
    tmp_path: Path, dataset: Path, checkout: Path, torch_files: ModuleType, moment: str
) -> None:
    """A training that was killed and started again has the metrics and weights of one that was not killed."""
    whole, killed = Training(tmp_path / "whole", dataset, checkout), Training(tmp_path / "killed", dataset, checkout)
    expected = metrics(whole.finish())
    assert list(expected) == list(range(25))

    first = "trainer.ckpt_interval=9" if "half" in moment else "trainer.ckpt_interval=10"
    seen = kill_at(moment, killed, tmp_path, first)
    assert seen[0] == "step 0 before its metrics"
    output = killed.finish()
    begin = 0 if "half" in moment else 10
    assert ("Resuming from global_step_10" in output) == bool(begin)

    found = metrics(output)
    assert list(found) == list(range(begin, 25))
    # The evaluation before the training is the only metric of the step that was resumed from.
    assert {step: found[step] for step in range(begin + 1, 25)} == {
        step: expected[step] for step in range(begin + 1, 25)
    }
    assert whole.steps == [10, 20, 24]
    last = "global_step_24"
    assert same_state(torch_files, whole.ckpts / last, killed.ckpts / last)


def test_kill_while_the_latest_step_is_written(tmp_path: Path, dataset: Path, checkout: Path) -> None:
    """As with SkyRL, a kill at this moment leaves an empty file, with which the next start fails."""
    training = Training(tmp_path, dataset, checkout)
    kill_at(f"empty {POINTER}", training, tmp_path)
    assert (training.ckpts / POINTER).read_text() == ""

    returncode, output = training.run()
    assert returncode == 1
    assert "ValueError: invalid literal for int() with base 10: ''" in output
    path = training.ckpts / "global_step_10"
    assert "Resuming from global_step_10" in training.finish(
        "trainer.resume_mode=from_path", f"trainer.resume_path={path}"
    )
    assert (training.ckpts / POINTER).read_text() == "24"


def test_resume_mode(tmp_path: Path, dataset: Path, checkout: Path) -> None:
    """Without resuming, or without checkpoints, training begins at step 0. Unsuitable checkpoints are refused."""
    training = Training(tmp_path, dataset, checkout)
    assert "No checkpoint found, starting training from scratch" in training.finish("trainer.max_training_steps=3")
    output = training.finish("trainer.max_training_steps=3", "trainer.resume_mode=null")
    assert "Checkpoint resumption disabled" in output
    assert list(metrics(output)) == [0, 1, 2, 3]

    returncode, output = training.run("trainer.placement.policy_num_gpus_per_node=2")
    assert returncode == 1
    assert "FileNotFoundError: Model checkpoint not found" in output
    assert "model_world_size_2_rank_0.pt" in output

    shutil.copytree(training.ckpts / "global_step_3", training.ckpts / "global_step_33")
    returncode, output = training.run()
    assert returncode == 1
    assert "ValueError: Inconsistent checkpoint folder." in output


def test_checkpoints_have_the_layout_of_skyrl(
    tmp_path: Path, dataset: Path, checkout: Path, torch_files: ModuleType
) -> None:
    """A checkpoint of two ranks has the files of SkyRL's FSDP trainer. Older ones are removed if requested."""
    training = Training(tmp_path, dataset, checkout)
    training.finish(
        "trainer.placement.policy_num_gpus_per_node=2", "trainer.ckpt_interval=5", "trainer.max_ckpts_to_keep=2"
    )
    assert training.steps == [20, 24]
    assert (training.ckpts / POINTER).read_text() == "24"
    folder = training.ckpts / "global_step_24"
    ranks = [
        f"policy/{name}_world_size_2_rank_{rank}.pt" for name in ("model", "optim", "extra_state") for rank in (0, 1)
    ]
    others = ["data.pt", "trainer_state.pt", "policy/fsdp_config.json", "policy/huggingface/config.json"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == sorted(
        ranks + others
    )
    assert json.loads((folder / "policy/fsdp_config.json").read_text()) == {"fsdp_strategy": "fsdp", "world_size": 2}

    state = torch_files.load(folder / "trainer_state.pt")
    assert state["global_step"] == 24
    assert state["config"]["trainer"]["max_ckpts_to_keep"] == 2
    assert torch_files.load(folder / "data.pt") == {"epoch": 0, "batch": 24}
    for path in folder.rglob("*.pt"):
        with zipfile.ZipFile(path) as archive:
            assert f"{path.stem}/data.pkl" in archive.namelist()


def test_arguments_are_those_of_skyrl(tmp_path: Path, dataset: Path, checkout: Path) -> None:
    """The last value of a key wins, and unknown keys are refused before anything is written."""
    training = Training(tmp_path, dataset, checkout)
    output = training.finish(
        "trainer.epochs=3", "trainer.epochs=1", "trainer.max_training_steps=null", "trainer.ckpt_interval=-1",
        "trainer.train_batch_size=128", "trainer.policy.optimizer_config.lr=1e-9", "trainer.eval_interval=-1",
    )  # fmt: skip
    assert list(metrics(output)) == [1, 2, 3, 4]
    assert "'policy/policy_lr': '0.0000'" in output
    assert training.steps == []

    returncode, output = training.run("trainer.epoch=3")
    assert returncode == 1
    assert "Invalid fields {'epoch'}" in output
    returncode, output = training.run("+trainer.epochs=3")
    assert returncode == 1
    assert "'+' prefix" in output


@pytest.mark.ray
def test_training_on_ray_has_the_same_result(
    tmp_path: Path, dataset: Path, checkout: Path, ray_address: str, torch_files: ModuleType
) -> None:
    """With rollout actors on Ray, the metrics and weights are those of a training in one process."""
    alone = Training(tmp_path / "alone", dataset, checkout)
    on_ray = Training(tmp_path / "ray", dataset, checkout, RAY_ADDRESS=ray_address)
    alone.finish("trainer.max_training_steps=3")
    output = on_ray.finish("trainer.max_training_steps=3")
    assert "Ray: 1 node(s), 2 rollout actor(s)" in output
    assert "training done" in output
    assert same_state(torch_files, alone.ckpts / "global_step_3", on_ray.ckpts / "global_step_3")


def test_refuses_pickles_that_execute_code(tmp_path: Path, torch_files: ModuleType) -> None:
    """A file that refers to a function is refused when it is read."""
    with zipfile.ZipFile(tmp_path / "state.pt", "w") as archive:
        archive.writestr("state/data.pkl", b"cos\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(ValueError, match=r"refused: os\.system"):
        torch_files.load(tmp_path / "state.pt")


def test_each_problem_has_few_correct_answers(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each problem has a correct answer, and at most a quarter of the possible answers are correct."""
    monkeypatch.syspath_prepend(str(TRAINER))
    monkeypatch.syspath_prepend(str(checkout / "skyrl-gym"))
    policy, prepare = importlib.import_module("policy"), importlib.import_module("prepare")
    skyrl_gym = importlib.import_module("skyrl_gym")
    rows: list[dict[str, Any]] = prepare.rows(100, "train", seed=0)
    for row in rows:
        numbers, states = policy.read(row["prompt"][-1]["content"])
        assert len(states) == len(numbers)
        rewards = [
            skyrl_gym.make("gsm8k", extras=row).step(policy.write(numbers, list(actions)))["reward"]
            for actions in itertools.product(range(policy.ACTIONS), repeat=len(states))
        ]
        assert 0 < sum(rewards) <= len(rewards) / 4
