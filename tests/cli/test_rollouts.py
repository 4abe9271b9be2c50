"""`skyrl-modal rollouts`: transcripts, JSON, and what is shown of many."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from skyrl_modal import Launcher, Run, VolumeSpec

#: Two attempts: the second one trains from step 2 again.
PROGRAM = r"""
import os
from skyrl_modal import log_rollouts
attempt = int(os.environ["SKYRL_ATTEMPT"])
for step in (1, 2, 3) if attempt == 1 else (2, 3, 4):
    log_rollouts([
        {"prompt": f"<|im_start|>user\nq{n // 2}<|im_end|>\n", "response": f"{attempt} \x1b[31m<b>", "reward": n * step}
        for n in range(4)
    ], step=step)
print(f"{os.environ['KEY']}", flush=True)
log_rollouts([{"prompt": "p", "response": f"the key {os.environ['KEY']}", "reward": -1.0}], step=9, source="eval/k")
raise SystemExit(attempt == 1)
"""


@pytest.fixture(scope="module")
def run_id(isolated_user_folders: None) -> str:
    """Return the id of a run with rollouts of two attempts."""
    launcher = Launcher(
        backend="local", mounts=[], ray=None, volumes=[VolumeSpec(name="test-rollouts")], retries=1, secrets=["KEY"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY", "s3cret-value")
        return launcher.run([sys.executable, "-c", PROGRAM], quiet=True, check=True).run_id


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "skyrl_modal", "rollouts", *arguments], capture_output=True, text=True, check=False
    )


def test_attempts_are_one_training(run_id: str) -> None:
    """A later attempt replaces the steps from its first one on, for each source; secrets are masked."""
    run = Run.attach(run_id)
    found = run.rollouts()

    assert [(each.step, each.response[0]) for each in found if each.source == "train"] == [
        *[(1, "1")] * 4,
        *[(step, "2") for step in (2, 3, 4) for _ in range(4)],
    ]
    assert [each.response for each in run.rollouts(source="eval")] == ["the key ********"]
    assert [each.reward for each in run.rollouts(best=2)] == [12.0, 9.0]
    html = found._repr_html_()
    assert html.startswith("<p>17 rollouts</p><details><summary>step 1  reward 0  train</summary>")
    assert "&lt;b&gt;" in html
    assert "<b><" not in html


def test_newest_are_shown(run_id: str) -> None:
    """Without options the newest ones are printed as transcripts, without control characters."""
    done = command(run_id)

    assert done.returncode == 0
    assert "17 rollouts, of which the newest 8 are shown" in done.stderr
    assert done.stdout.count("== step") == 8
    assert "== step 4  reward 12  train ==\n[user]\nq1\n[assistant]\n2 \\x1b[31m<b>\n" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert command(run_id, "--all").stdout.count("== step") == 17


def test_options(run_id: str) -> None:
    """Steps, extremes and sources are chosen, and JSON has a line for each."""
    done = command(run_id, "--step", "3", "--best", "1", "--worst", "1", "--source", "train", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]

    assert [(row["step"], row["reward"], row["source"]) for row in rows] == [(3, 9.0, "train"), (3, 0.0, "train")]
    assert rows[0]["prompt"] == [{"role": "user", "content": "q1"}]
    assert rows[0]["response"] == [{"role": "assistant", "content": "2 \x1b[31m<b>"}]
    nothing = command(run_id, "--step", "77")
    assert (nothing.stdout, nothing.returncode) == ("", 0)
    assert "there are no such rollouts" in nothing.stderr
    assert command(run_id, "--best", "-1").returncode == 2
