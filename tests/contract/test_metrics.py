"""Metrics of the processes of a run can be read while it executes and afterwards, on every backend."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from skyrl_modal import RaySpec, Run, SpecError
from skyrl_modal.errors import PathNotFound
from tests.conftest import MakeLauncher
from tests.contract.conftest import LOCAL_FIRST

#: A training that is killed at a step in its first attempt, and continues two steps earlier in the second one.
TRAINING = """
import os, time
from skyrl_modal import log_metrics
attempt = int(os.environ["SKYRL_ATTEMPT"])
for step in range(1 if attempt == 1 else 4, 9):
    log_metrics({"loss": step / 3, "attempt": attempt}, step=step)
    if attempt == 1 and step == 6:
        os.kill(os.getpid(), 9)
"""


def python(code: str) -> str:
    """Return a command that executes a program."""
    return f"cat > /tmp/program.py <<'END'\n{code}\nEND\npython3 /tmp/program.py"


def test_attempts_are_one_training(launcher: MakeLauncher) -> None:
    """The rows of a run with a repeated attempt are those of one training, with exact values."""
    result = launcher(retries=1).run(python(TRAINING), quiet=True, check=True)

    metrics = Run.attach(result.run_id).metrics()
    assert [row["step"] for row in metrics] == list(range(1, 9))
    assert [row["loss"] for row in metrics] == [step / 3 for step in range(1, 9)]
    assert [row["attempt"] for row in metrics] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert metrics.keys == ("attempt", "loss")
    assert (len(metrics), metrics.skipped, metrics[-1]["loss"]) == (8, 0, 8 / 3)
    assert repr(metrics) == "Metrics(8 rows, steps 1 to 8, 2 keys)"
    table = metrics.to_pandas()
    assert list(table.columns) == ["step", "time", "attempt", "loss"]
    assert table["loss"].tolist() == [step / 3 for step in range(1, 9)]
    assert metrics.to_pandas(["loss"]).shape == (8, 3)


def test_rows_are_followed(launcher: MakeLauncher) -> None:
    """Rows are yielded as they become visible, the last ones when the run has ended."""
    code = """
import time
from skyrl_modal import log_metrics
for step in range(3):
    log_metrics({"loss": float(step)}, step=step)
    time.sleep(0.5)
log_metrics({"eval": float("nan")}, step=1)
"""
    run = launcher().submit(python(code))

    rows = list(run.metrics(follow=True))

    last = {row["step"]: row for row in rows}
    assert [last[step]["loss"] for step in range(3)] == [0.0, 1.0, 2.0]
    assert math.isnan(last[1]["eval"])
    assert run.result().returncode == 0


def test_run_is_plotted_and_watched(launcher: MakeLauncher, capsys: pytest.CaptureFixture[str]) -> None:
    """A chart has the curve of each key. Outside of a notebook, the view writes a line for each state and step."""
    code = """
from skyrl_modal import log_metrics
for step in range(1, 4):
    log_metrics({"loss": 1 / step, "reward/avg_raw_reward": step / 4}, step=step)
"""
    run = launcher().submit(python(code))

    run.watch("loss", "eval")

    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "succeeded  step 3  loss 0.33333"
    assert len(lines) == len(set(lines))
    assert list(run.plot().curves) == ["reward/avg_raw_reward", "loss"]
    chart = run.result().plot("reward/avg_raw_reward", "loss")
    assert list(chart.curves) == ["reward/avg_raw_reward", "loss"]
    assert chart.curves["loss"][0].steps == [1, 2, 3]
    assert str(chart).startswith("reward/avg_raw_reward: 0.75\n")
    with pytest.raises(SpecError, match=r"key='los': it was not logged\. Similar ones: loss"):
        run.plot("los")
    with pytest.raises(SpecError, match="pass names of metrics"):
        run.plot(["loss"])  # type: ignore[arg-type]


def test_run_without_metrics(launcher: MakeLauncher) -> None:
    """A run that has logged nothing has no rows."""
    result = launcher().run("true", quiet=True)

    metrics = Run.attach(result.run_id).metrics()
    assert (list(metrics), metrics.keys, len(metrics.to_pandas())) == ([], (), 0)
    assert repr(metrics) == "Metrics(no rows)"
    assert str(metrics.plot("loss")).startswith("no metrics are recorded: the command has logged none, or not yet")
    assert metrics.plot()._repr_html_().startswith("<p>no metrics are recorded")


def test_file_of_a_tinker_client(launcher: MakeLauncher) -> None:
    """A file with lines of JSON on the volume is read by its path in the container."""
    lines = [{"step": step, "reward": step / 7, "path": "tinker://x"} for step in range(3)]
    text = "\n".join(map(json.dumps, lines))
    command = f"mkdir -p /root/data/ppo; printf '%s\\n' '{text}' no-json > /root/data/ppo/metrics.jsonl"
    run = Run.attach(launcher().run(command, quiet=True, check=True).run_id)

    metrics = run.metrics(path="/root/data/ppo/metrics.jsonl")

    assert [row["reward"] for row in metrics] == [0.0, 1 / 7, 2 / 7]
    assert metrics.skipped == 1
    with pytest.raises(PathNotFound):
        run.metrics(path="/root/data/ppo/other.jsonl")
    for path, follow in (("/root/other.jsonl", False), ("/root/data/ppo/metrics.jsonl", True)):
        with pytest.raises(SpecError):
            run.metrics(follow, path=path)


def test_hostile_files_on_the_volume(launcher: MakeLauncher) -> None:
    """Links, pipes, damaged and huge files in the run's folder raise no error, and are not read."""
    files = {
        "1-1-0-aa-0.jsonl": "ln -s /etc/passwd",
        "1-1-0-ab-0.jsonl": "mkdir",
        "1-1-0-ac-0.jsonl": "head -c 17000000 /dev/zero >",
        "1-1-0-ad-0.jsonl": "head -c 100000 /dev/urandom >",
        "x\\ny.jsonl": "touch",
    }
    make = "; ".join(f"{command} $'{name}'" for name, command in files.items())
    code = 'from skyrl_modal import log_metrics; log_metrics({"loss": 1.5}, step=3)'
    command = f"python3 -c '{code}' && cd \"$SKYRL_MODAL_RUN_FOLDER/metrics\" && {make}"

    run = Run.attach(launcher().run(command, quiet=True, check=True).run_id)
    metrics = run.metrics()

    assert [(row["step"], row["loss"]) for row in metrics] == [(3, 1.5)]
    assert metrics.skipped > 1
    assert [row["step"] for row in itertools.islice(run.metrics(follow=True), 5)] == [3]


#: SkyRL's class in short, in a package of the checkout.
TRACKING = """
class Tracking:
    def log(self, data, step, commit=False):
        print(step)
"""
#: A training in a task of Ray, which fails in its first attempt.
DRIVER = """
import os, sys
import ray
@ray.remote
def skyrl_entrypoint(attempt):
    sys.path.insert(0, os.environ["SKYRL_REPO_ROOT"])
    from skyrl.train.utils.tracking import Tracking
    for step in range(1 if attempt == 1 else 4, 7):
        Tracking().log({"loss": step / 3, "attempt": attempt}, step, commit=True)
    return attempt
ray.init()
sys.exit(2 - ray.get(skyrl_entrypoint.remote(int(os.environ["SKYRL_ATTEMPT"]))))
"""


@pytest.mark.ray
@LOCAL_FIRST
def test_tracker_in_a_task_of_ray(launcher: MakeLauncher, checkout: Path) -> None:
    """Tasks of Ray are recorded. Ray continues in the second attempt, and its rows are those of that attempt."""
    for name in ("skyrl/train/__init__.py", "skyrl/train/utils/__init__.py", "skyrl/train/utils/tracking.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(TRACKING if name.endswith("tracking.py") else "")
    (checkout / "driver.py").write_text(DRIVER)

    result = launcher(ray=RaySpec(), retries=1).run("python driver.py", quiet=True)

    metrics = Run.attach(result.run_id).metrics()
    assert (result.returncode, result.attempts) == (0, 2)
    assert [row["loss"] for row in metrics] == [step / 3 for step in range(1, 7)]
    assert [row["attempt"] for row in metrics] == [1, 1, 1, 2, 2, 2]
