"""Tests of the quickstart's trainer: its files, its behaviour when it is killed, and its task."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TRAINER = Path(__file__).resolve().parents[2] / "examples" / "quickstart_trainer"


def prepare(run_dir: Path) -> Path:
    """Write the dataset, and return the run folder."""
    command = [sys.executable, str(TRAINER / "prepare.py"), "--output-dir", str(run_dir / "dataset")]
    subprocess.run(command, check=True, capture_output=True)
    return run_dir


def start(run_dir: Path, steps: int, checkout: Path, ray_address: str) -> subprocess.Popen[str]:
    """Start a training process."""
    return subprocess.Popen(
        [sys.executable, str(TRAINER / "train.py"), "--run-dir", str(run_dir), "--steps", str(steps)],
        env={**os.environ, "SKYRL_REPO_ROOT": str(checkout), "RAY_ADDRESS": ray_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], start_of_line: str) -> None:
    """Read the output of a process until a line starts with a text."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(start_of_line):
            return
    raise AssertionError(f"no line {start_of_line!r} in:\n" + "".join(seen))


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process to succeed, and return the rest of its output."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def metrics(run_dir: Path) -> list[tuple[Any, ...]]:
    """Return step, reward, entropy and clipped share of each logged step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["reward"], row["entropy"], row["clipped"]) for row in rows]


@pytest.mark.slow
@pytest.mark.ray
def test_killed_training_resumes_with_the_same_result(tmp_path: Path, checkout: Path, ray_address: str) -> None:
    """A training that was killed and resumed has the metrics and weights of one that was not killed."""
    whole = prepare(tmp_path / "whole")
    finish(start(whole, 24, checkout, ray_address))

    killed = prepare(tmp_path / "killed")
    first = start(killed, 24, checkout, ray_address)
    read_until(first, "step  13/24")
    first.kill()
    first.communicate()
    assert (killed / "ckpts" / "latest_ckpt_global_step.txt").read_text() == "10"
    assert metrics(killed) != metrics(whole)

    output = finish(start(killed, 24, checkout, ray_address))
    assert f"resumed from {killed}/ckpts/global_step_10" in output
    assert metrics(killed) == metrics(whole)
    assert [step for step, *_ in metrics(whole)] == list(range(1, 25))
    with (
        np.load(whole / "ckpts/global_step_24/policy.npz") as expected,
        np.load(killed / "ckpts/global_step_24/policy.npz") as found,
    ):
        for name in expected.files:
            assert np.array_equal(found[name], expected[name]), name


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_training_saves_its_last_step(
    tmp_path: Path, checkout: Path, ray_address: str, number: signal.Signals
) -> None:
    """A training that receives a signal saves a checkpoint of its last step."""
    process = start(prepare(tmp_path), 100_000, checkout, ray_address)
    read_until(process, "step   3/100000")
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number, output
    last = metrics(tmp_path)[-1][0]
    assert f"stopped by {number.name} after step {last}" in output
    assert (tmp_path / "ckpts" / "latest_ckpt_global_step.txt").read_text() == str(last)
    assert (tmp_path / "ckpts" / f"global_step_{last}" / "policy.npz").is_file()


SAVE_FOR_EVER = """
import dataclasses, pathlib, sys
import checkpoint, grpo
folder = pathlib.Path(sys.argv[1])
found = checkpoint.latest(folder)
state = checkpoint.load(found) if found else grpo.State.initial()
while True:
    state = dataclasses.replace(state, step=state.step + 1)
    print(checkpoint.save(folder, state), flush=True)
"""


def test_checkpoint_is_complete_or_absent_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest checkpoint can be loaded after its writer was killed at any time."""
    monkeypatch.syspath_prepend(str(TRAINER))
    checkpoint = importlib.import_module("checkpoint")
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path)], cwd=TRAINER, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        printed = [next(writer.stdout) for _ in range(5)][-1]
        writer.kill()
        printed = [printed, *writer.communicate()[0].splitlines(keepends=True)][-1]
        latest = checkpoint.latest(tmp_path)
        # The printed checkpoint is complete. At most one more was completed between its print and the kill.
        step = int(printed.rstrip().rpartition("_")[2])
        assert checkpoint.load(latest).step in (step, step + 1)


def test_each_problem_has_few_correct_answers(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each problem has a correct answer, and at most a quarter of the possible answers are correct."""
    monkeypatch.syspath_prepend(str(TRAINER))
    monkeypatch.syspath_prepend(str(checkout / "skyrl-gym"))
    policy, dataset = importlib.import_module("policy"), importlib.import_module("prepare")
    skyrl_gym = importlib.import_module("skyrl_gym")
    for row in dataset.rows(100, "train", seed=0):
        numbers, states = policy.read(row["prompt"][-1]["content"])
        assert len(states) == len(numbers)
        rewards = [
            skyrl_gym.make("gsm8k", extras=row).step(policy.write(numbers, list(actions)))["reward"]
            for actions in itertools.product(range(policy.ACTIONS), repeat=len(states))
        ]
        assert 0 < sum(rewards) <= len(rewards) / 4
