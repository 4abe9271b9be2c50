"""Tests of examples/quickstart.py, run as a script with a real checkout and Ray."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.loopback import LoopbackModal

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MAKE_CHECKOUT = "import quickstart; print(quickstart.published_checkout())"


def quickstart(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the quickstart with arguments and additional variables."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart.py"), *arguments],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.ray
def test_reward_rises_and_second_run_resumes(tmp_path: Path, checkout: Path) -> None:
    """The mean reward rises, and the second run continues from the checkpoint of the first."""
    done = quickstart("--checkout", str(checkout), XDG_DATA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    [both] = re.findall(r"^both:  mean reward ([\d.]+) -> ([\d.]+)$", done.stdout, re.MULTILINE)
    before, after = map(float, both)
    assert before < 0.2
    assert after > 0.85
    assert "No checkpoint found, starting training from scratch" in done.stdout
    assert "Resuming from global_step_30" in done.stdout
    assert "run 2: resumed from global_step_30, steps 31-60" in done.stdout

    [path] = tmp_path.rglob("latest_ckpt_global_step.txt")
    assert path.read_text() == "60"
    assert (path.parent / "global_step_60" / "policy" / "model_world_size_1_rank_0.pt").is_file()
    for log in re.findall(r"^run \d: .*, log (.*)$", done.stdout, re.MULTILINE):
        assert "eval/all/avg_score" in Path(log).read_text()


@pytest.mark.ray
@pytest.mark.timeout(290)
@pytest.mark.parametrize("backend", ["local", pytest.param("modal", marks=pytest.mark.slow)])
def test_quickstart_on_two_nodes(tmp_path: Path, checkout: Path, backend: str) -> None:
    """Rollout actors run on both nodes of each run."""
    arguments = ("--checkout", str(checkout), "--nodes", "2", "--steps", "20", "--backend", backend)
    if backend == "local":
        done = quickstart(*arguments, XDG_DATA_HOME=str(tmp_path))
    else:
        with LoopbackModal(tmp_path, scaledown=1) as server:
            done = quickstart(*arguments, **server.env())
            assert server.unimplemented == []

    assert done.returncode == 0, done.stdout + done.stderr
    nodes = re.findall(r" node (\w{56}): (\d+) rollout actor", done.stdout)
    assert len(nodes) == 4  # two nodes in each of the two runs
    assert len({node for node, _ in nodes}) == 4
    assert all(int(count) > 0 for _, count in nodes)
    assert "run 2: resumed from global_step_10, steps 11-20" in done.stdout


@pytest.mark.slow
def test_parallel_processes_make_one_complete_checkout(tmp_path: Path) -> None:
    """Two processes that make the checkout at the same time leave one complete checkout."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE_CHECKOUT],
            cwd=EXAMPLES,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    roots = {Path(process.communicate()[0].splitlines()[-1]) for process in both}
    assert [process.returncode for process in both] == [0, 0]
    [root] = roots
    assert (root / "skyrl" / "train" / "trainer.py").is_file()
    assert (root / "skyrl-gym" / "pyproject.toml").is_file()
    assert (root / "skyrl-gym" / "skyrl_gym" / "envs" / "gsm8k" / "env.py").is_file()
    # No files of the other process and of the download are left.
    assert list(root.parent.iterdir()) == [root]


def test_missing_package_index_is_explained(tmp_path: Path) -> None:
    """Without a package index the quickstart explains that it needs --checkout."""
    done = quickstart(
        XDG_CACHE_HOME=str(tmp_path), PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)
    )
    assert done.returncode == 1
    assert "ERROR: No matching distribution found for skyrl==" in done.stderr
    assert done.stderr.rstrip().endswith("--checkout DIR")
    assert list(tmp_path.rglob("*.tar.gz")) == []


def test_fewer_than_two_steps_are_refused() -> None:
    """--steps 1 is a usage error."""
    done = quickstart("--steps", "1")
    assert done.returncode == 2
    assert "--steps: must be at least 2" in done.stderr
