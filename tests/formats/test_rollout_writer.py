"""The hook records the rollouts of SkyRL's trainers, and ``log_rollouts`` those of other programs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Rollout, log_rollouts
from skyrl_modal.formats.rollout_files import read_recorded
from skyrl_modal.formats.rollout_writer import DEFAULT_SAMPLES, MAX_RUN_BYTES, RolloutFile, choose
from tests.formats.hook_process import HOOK, hook_environment, run_python
from tests.support.pythons import find_python

#: SkyRL's classes in short: the trainer, and one that changes the rewards before, as that of DAPO does.
TRAINER = """
class RayPPOTrainer:
    def __init__(self, tokenizer=None):
        self.global_step = 0
        self.tokenizer = tokenizer
    def postprocess_generator_output(self, generator_output, uids, metrics_generator_output=None, metrics_uids=None):
        "Convert rewards."
        if self.global_step == 99:
            raise ValueError("of the trainer")
        generator_output["rewards"] = [[0.0] for _ in uids]
        return generator_output, uids
class DAPOTrainer(RayPPOTrainer):
    def postprocess_generator_output(self, generator_output, uids):
        return super().postprocess_generator_output(generator_output, uids)
"""
PREAMBLE = """
from skyrl.train.trainer import DAPOTrainer, RayPPOTrainer
class Tokenizer:
    def decode(self, tokens):
        return "".join(map(chr, tokens))
def ids(*texts):
    return [list(map(ord, text)) for text in texts]
def output(prompts, responses, rewards, **more):
    return {"prompt_token_ids": ids(*prompts), "response_ids": ids(*responses), "rewards": rewards, **more}
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Return a folder with a package like SkyRL's."""
    for name, text in {
        "skyrl/__init__.py": "",
        "skyrl/train/__init__.py": "",
        "skyrl/train/trainer.py": TRAINER,
    }.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "packages"


def recorded(run_folder: Path) -> list[Rollout]:
    """Return what was recorded; no line may be damaged."""
    lines = [line for path in sorted((run_folder / "rollouts").glob("*")) for line in path.read_bytes().splitlines()]
    found = [read_recorded(line) for line in lines]
    assert all(found)
    return [each for each in found if each is not None]


def run(code: str, env: dict[str, str], **more: Any) -> str:
    """Run a program that must succeed silently, and return its output."""
    done = run_python(PREAMBLE + code, env, **more)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("python", [sys.executable, *filter(None, [find_python("3.9")])])
def test_step_of_a_trainer(tmp_path: Path, packages: Path, python: str) -> None:
    """Each rollout of a step is recorded with its group and its reward before the trainer converts it."""
    code = """
trainer = DAPOTrainer(Tokenizer())
trainer.global_step = 7
batch = output(["p1", "p1", "p2", "p2"], ["a", "b", "c", "d"], [0.5, [0.0, 1.0], float("nan"), 1],
               stop_reasons=["stop"] * 4, loss_masks=[[1]] * 4)
found, uids = trainer.postprocess_generator_output(batch, ["u1", "u1", "u2", "u2"])
assert found is batch and found["rewards"] == [[0.0]] * 4 and uids == ["u1", "u1", "u2", "u2"]
assert RayPPOTrainer.postprocess_generator_output.__doc__ == "Convert rewards."
trainer.global_step = 99
try:
    trainer.postprocess_generator_output(generator_output=batch, uids=[])
except ValueError as error:
    print(error)
"""
    assert run(code, hook_environment(tmp_path, packages), python=python) == "of the trainer\n"

    rollouts = [each for each in recorded(tmp_path) if each.step == 7]
    assert [(each.prompt, each.response, each.group, each.source) for each in rollouts] == [
        ("p1", "a", "u1", "train"),
        ("p1", "b", "u1", "train"),
        ("p2", "c", "u2", "train"),
        ("p2", "d", "u2", "train"),
    ]
    rewards = [each.reward for each in rollouts]
    assert rewards[:2] == [0.5, 1.0]
    assert rewards[2] is not None
    assert math.isnan(rewards[2])
    assert {each.stop_reason for each in rollouts} == {"stop"}
    assert not (tmp_path / "metrics").exists()


def test_several_turns(tmp_path: Path, packages: Path) -> None:
    """Turns are divided by the loss mask, by the chat template, and with step-wise training by the next prompt."""
    code = """
trainer = RayPPOTrainer(Tokenizer())
trainer.global_step = 1
plain = output(["q"], ["callRESULTend"], [1.0], loss_masks=[[1] * 4 + [0] * 6 + [1] * 3])
trainer.postprocess_generator_output(plain, ["u"])
trainer.global_step = 2
text = "call<|im_end|>\\\\n<|im_start|>user\\\\nRESULT<|im_end|>\\\\n<|im_start|>assistant\\\\nend"
chat = output(["q"], [text], [1.0], loss_masks=[[1] * 14 + [0] * (len(text) - 17) + [1] * 3])
trainer.postprocess_generator_output(chat, ["u"])
trainer.global_step = 3
steps = output(["q", "qcallRESULT", "r"], ["call", "end", "other"], [0.0, 0.75, 0.5], is_last_step=[False, True, True],
               loss_masks=[[1] * 4, [1] * 3, [0] * 5])
trainer.postprocess_generator_output(steps, ["u", "u", "u"])
trainer.global_step = 4
steps = output(["q", "qcall<|im_end|>RESULT"], ["call<|im_end|>RESULT", "end<|im_end|>"], [0.0, 1.0],
               is_last_step=[False, True], loss_masks=[[1] * 14 + [0] * 6, [1] * 13])
trainer.postprocess_generator_output(steps, ["u", "u"])
""".replace("\\\\n", "\\n")
    run(code, hook_environment(tmp_path, packages))

    conversations = [[(each.role, each.content) for each in found.response_messages] for found in recorded(tmp_path)]
    turns = [("assistant", "call"), ("environment", "RESULT"), ("assistant", "end")]
    assert conversations == [turns, [turns[0], ("user", "RESULT"), turns[2]], turns, [("assistant", "other")], turns]
    assert [each.reward for each in recorded(tmp_path)] == [1.0, 1.0, 0.75, 0.5, 1.0]


def test_limits_of_a_step(tmp_path: Path, packages: Path) -> None:
    """A step has a limited number of rollouts and bytes; long texts are cut, and tokens shown where nothing decodes."""
    code = """
import os
trainer = RayPPOTrainer(Tokenizer())
trainer.global_step = 1
trainer.postprocess_generator_output(
    output([f"p{n // 8}" for n in range(512)], ["x"] * 512, [float(n == 100) for n in range(512)]),
    [f"u{n // 8}" for n in range(512)])
trainer.global_step = 2
trainer.postprocess_generator_output(output(["p"] * 64, ["y" * 50_000] * 64, [0.0] * 64), ["u"] * 64)
trainer.global_step, trainer.tokenizer = 3, None
trainer.postprocess_generator_output(output(["p"], ["AB"], [0.0]), ["u"])
os.environ["SKYRL_MODAL_ROLLOUTS"] = "0"
trainer.global_step = 4
trainer.postprocess_generator_output(output(["p"], ["AB"], [0.0]), ["u"])
"""
    run(code, hook_environment(tmp_path, packages))

    by_step = {step: [each for each in recorded(tmp_path) if each.step == step] for step in range(1, 5)}
    assert len(by_step[1]) == DEFAULT_SAMPLES
    groups = {each.group for each in by_step[1]}
    assert "u12" in groups
    assert [sum(each.group == group for each in by_step[1]) for group in groups] == [8] * 4
    assert [each.reward for each in by_step[1]].count(1.0) == 1
    assert 0 < len(by_step[2]) <= DEFAULT_SAMPLES
    assert all(each.truncated and "41,808 tokens are left out" in each.response for each in by_step[2])
    assert by_step[3][0].response == "[tokens] 65 66"
    assert by_step[4] == []
    assert max(path.stat().st_size for path in (tmp_path / "rollouts").iterdir()) < 3 << 20


def test_switched_off(tmp_path: Path, packages: Path) -> None:
    """With 0 as the number of rollouts, the trainer's function is not wrapped."""
    code = "print(hasattr(RayPPOTrainer.postprocess_generator_output, '_skyrl_modal_original'))"
    environment = hook_environment(tmp_path, packages)

    assert run(code, {**environment, "SKYRL_MODAL_ROLLOUTS": "0"}) == "False\n"
    assert run(code, environment) == "True\n"


#: Statements that change what the hook reads, or where it writes.
PLANTED = (
    "trainer.global_step = 'x'",
    "trainer.tokenizer = 3",
    "uids = None",
    "uids = []",
    "batch = {}",
    "batch['rewards'] = None",
    "batch['response_ids'] = 5",
    "batch['prompt_token_ids'] = [['x']]",
    "os.environ['SKYRL_MODAL_ROLLOUTS'] = 'x'",
    "shutil.rmtree(folder)",
)


def test_errors_do_not_reach_the_trainer(tmp_path: Path, packages: Path) -> None:
    """Whatever the hook cannot read or write, the trainer continues as without it."""
    (tmp_path / "run").mkdir()
    code = f"""
import os, shutil, sys
folder = sys.argv[1]
for planted in {PLANTED}:
    trainer, uids, batch = RayPPOTrainer(Tokenizer()), ["u"], output(["p"], ["a"], [0.5])
    exec(planted)
    try:
        print(planted, trainer.postprocess_generator_output(batch, uids))
    except Exception as error:
        print(planted, type(error), error)
"""

    def outcome(run_folder: Path | None) -> str:
        argv = [sys.executable, "-c", PREAMBLE + code, str(tmp_path / "run")]
        done = subprocess.run(
            argv, env=hook_environment(run_folder, packages), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    with_hook = outcome(tmp_path / "run")
    (tmp_path / "run").mkdir()
    assert with_hook == outcome(None)
    assert with_hook.count("\n") == len(PLANTED)


def test_secrets_are_masked(tmp_path: Path, packages: Path) -> None:
    """Values of the run's secrets are replaced in texts, also where they are escaped."""
    code = """
trainer = RayPPOTrainer(Tokenizer())
trainer.postprocess_generator_output(output(["key s3cret\\"x"], ['{"k": "s3cret\\\\"x"}'], [0.5]), ["s3cret\\"x"])
"""
    secrets = {"SKYRL_MODAL_SECRETS": "MY_KEY,OTHER", "MY_KEY": 's3cret"x'}
    run(code, hook_environment(tmp_path, packages, **secrets))

    [rollout] = recorded(tmp_path)
    assert (rollout.prompt, rollout.response, rollout.group) == ("key ********", '{"k": "********"}', "********")


def test_choice_has_the_extremes() -> None:
    """The best and the worst rollout are chosen, also of a large group, and other groups differ by step."""
    groups = [f"u{number // 4}" for number in range(400)]
    rewards: list[float | None] = [0.5] * 400
    rewards[17], rewards[333], rewards[5] = 1.0, -1.0, math.nan

    chosen = [choose(groups, rewards, 16, step) for step in range(20)]

    assert all(len(each) == 16 and {16, 17, 18, 19, 332, 333} <= set(each) for each in chosen)
    assert len({tuple(each) for each in chosen}) > 10
    assert choose(groups, rewards, 1, 0) in ([17], [333])
    assert choose(["u"] * 100, rewards[:100], 4, 0) == [0, 1, 17, 99] or 17 in choose(["u"] * 100, rewards[:100], 4, 0)
    assert choose(["u"] * 3, [None] * 3, 8, 0) == [0, 1, 2]
    assert len(choose(groups, [None] * 400, 8, 0)) == 8


def test_bytes_of_a_run_are_limited(tmp_path: Path) -> None:
    """The fuller the folder is, the fewer steps are recorded; also that of earlier attempts counts."""
    folder = tmp_path / "rollouts"
    folder.mkdir()
    due = {}
    for used in (0.4, 0.6, 0.8, 0.9, 0.999):
        with (folder / "other.jsonl").open("wb") as file:
            file.truncate(int(MAX_RUN_BYTES * used))
        found = RolloutFile(str(tmp_path), attempt=1, started_at=1.0, rank=0)
        due[used] = sum(found.is_due(step) for step in range(64))
    assert due == {0.4: 64, 0.6: 32, 0.8: 16, 0.9: 8, 0.999: 0}


def test_log_rollouts(tmp_path: Path) -> None:
    """A program passes texts or messages; wrong arguments are refused, and outside of a run nothing is written."""
    code = """
from skyrl_modal import log_rollouts
messages = [{"role": "user", "content": "1+1?"}]
log_rollouts([{"prompt": messages, "response": "2", "reward": 1, "group": 4, "stop_reason": "stop"}], step=3)
log_rollouts([{"prompt": "q", "response": [{"role": "assistant", "content": "a"}]}], step=4, source="eval/mine")
"""
    package = str(HOOK.parents[2])
    done = run_python(code, hook_environment(tmp_path, package))
    assert (done.returncode, done.stderr) == (0, "")

    first, second = recorded(tmp_path)
    assert (first.step, first.prompt, first.reward, first.group, first.stop_reason) == (3, "1+1?", 1.0, "4", "stop")
    assert (second.step, second.source, second.reward, second.response) == (4, "eval/mine", None, "a")
    for arguments, error in [
        (([{"prompt": "p"}],), TypeError),
        (([{"prompt": "p", "response": "r", "reward": "1"}],), TypeError),
        ((["x"],), TypeError),
        (([{"prompt": 1, "response": "r"}],), TypeError),
    ]:
        with pytest.raises(error):
            log_rollouts(*arguments, step=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 0"):
        log_rollouts([], step=-1)
    with pytest.raises(TypeError, match="step"):
        log_rollouts([], step="1")  # type: ignore[arg-type]
    log_rollouts([{"prompt": "p", "response": "r"}], step=1)
    assert "SKYRL_MODAL_RUN_FOLDER" not in os.environ


def test_work_of_a_step(tmp_path: Path, packages: Path) -> None:
    """Of 1,024 responses only the chosen ones are decoded, and the prompt of a group once."""
    code = """
class Counting(Tokenizer):
    calls = tokens = 0
    def decode(self, tokens):
        Counting.calls += 1
        Counting.tokens += len(tokens)
        return super().decode(tokens)
trainer = RayPPOTrainer(Counting())
trainer.postprocess_generator_output(
    output(["p" * 200] * 1024, ["y" * 1000] * 1024, [0.5] * 1024, loss_masks=[[1] * 1000] * 1024),
    [f"u{n // 8}" for n in range(1024)])
print(Counting.calls, Counting.tokens)
"""
    calls, tokens = map(int, run(code, hook_environment(tmp_path, packages)).split())

    assert len(recorded(tmp_path)) == DEFAULT_SAMPLES
    assert calls == DEFAULT_SAMPLES + 1
    assert tokens == 1000 * DEFAULT_SAMPLES + 200


def test_killed_process_leaves_whole_lines(tmp_path: Path, packages: Path) -> None:
    """A process that is killed while it records leaves complete lines, as its steps are written by one call each."""
    code = (
        PREAMBLE
        + """
trainer = RayPPOTrainer(Tokenizer())
while True:
    trainer.global_step += 1
    trainer.postprocess_generator_output(output(["p"] * 8, ["y" * 1000] * 8, [0.5] * 8), ["u"] * 8)
    print("step", flush=True)
"""
    )
    env = hook_environment(tmp_path, packages)
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.kill()
    assert len(recorded(tmp_path)) % 8 == 0
