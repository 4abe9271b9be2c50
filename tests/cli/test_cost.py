"""Tests of `skyrl-modal cost`, and of the cost in the list of runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.protocol.job import Job, NodeRate
from skyrl_modal.run.index import IndexRecord, RunIndex
from skyrl_modal.run.spending import script_of_command
from skyrl_modal.user_folders import data_folder
from tests.cli.test_cli import Command, skyrl

__all__ = ["skyrl"]

#: One US dollar per second.
RATE = ("--no-ray", "--rate", "3600")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache folder without costs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def costs(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """Return the cells of the printed rows."""
    assert done.returncode == 0, done.stderr
    return [line.split(maxsplit=5) for line in done.stdout.splitlines()]


def test_costs_of_runs(skyrl: Command) -> None:
    """Each run has a row with its cost, and the last row has the total. A local run without a rate costs nothing."""
    skyrl("run", "-q", *RATE, "--tag", "a", "python train.py")
    skyrl("run", "-q", "--no-ray", "exit 3")

    first, second, total = costs(skyrl("cost"))

    assert (first[1:4], first[5]) == (["$0", "failed", "local"], "exit 3")
    assert (second[2:5], second[5]) == (["succeeded", "local", "a"], "python train.py")
    assert 0.05 < float(second[1].removeprefix("$")) < 5
    assert total == ["total", second[1]]
    listed = json.loads(skyrl("ps", "--json").stdout)
    assert listed[0]["cost"] == 0
    assert listed[1]["cost"] == pytest.approx(float(second[1].removeprefix("$")), abs=0.01)
    assert skyrl("ps").stdout.splitlines()[2].split()[-3] == second[1]


def test_costs_of_groups(skyrl: Command) -> None:
    """Runs are grouped by script or tag. A run with two tags is in both groups, and counts once in the total."""
    skyrl("run", "-q", *RATE, "--tag", "a", "--tag", "b", "bash one.sh x=1 || true")
    skyrl("run", "-q", *RATE, "--tag", "a", "bash one.sh x=2 || true")
    skyrl("run", "-q", *RATE, "python train.py")

    by_tag = {line[0]: line for line in costs(skyrl("cost", "--by", "tag"))}
    by_script = json.loads(skyrl("cost", "--by", "script", "--json").stdout)

    assert {key: line[2] for key, line in by_tag.items()} == {"a": "2", "b": "1", "-": "1", "total": "3"}
    assert {group["key"]: group["runs"] for group in by_script["groups"]} == {"one.sh": 2, "train.py": 1}
    assert sum(group["cost"] for group in by_script["groups"]) == pytest.approx(by_script["total"])


def test_costs_since(skyrl: Command) -> None:
    """Only runs that were started in the given time are shown. Another value is refused."""
    old = Job(
        run_id="20200101-000000-aaaaaa", command="x", workdir="/", run_folder="/x", created_at="2020-01-01T00:00Z"
    )
    RunIndex().add(IndexRecord(job=old, backend="local", handle={"pid": 1, "run_folder": "/x"}))
    skyrl("run", "-q", *RATE, "true")

    assert json.loads(skyrl("cost", "--json").stdout)["runs"] == 2
    for since in ("1h", "2026-01-01"):
        assert json.loads(skyrl("cost", "--json", "--since", since).stdout)["runs"] == 1
    assert json.loads(skyrl("cost", "--json", "--since", "2019-12-31").stdout)["runs"] == 2
    refused = skyrl("cost", "--since", "yesterday")
    assert (refused.returncode, "2026-11-01" in refused.stderr) == (125, True)


def test_costs_of_ended_runs_are_stored(skyrl: Command, tmp_path: Path) -> None:
    """The cost of a run that has ended is known also when its volume was removed."""
    skyrl("run", "-q", *RATE, "--volume", f"/root/data={tmp_path.name}", "true")
    before = skyrl("cost").stdout
    shutil.rmtree(data_folder() / "volumes" / tmp_path.name)

    assert skyrl("cost").stdout == before


def test_unknown_costs(skyrl: Command) -> None:
    """A run whose cost is not known is named with the reason, and does not hide others."""
    rate = NodeRate(per_hour=1.0)
    for number, backend in enumerate(("modal", "mine")):
        created = "2020-01-01T00:00:00+00:00"
        job = Job(run_id=f"20200101-00000{number}-a", command="x", workdir="/", run_folder="/x", created_at=created)
        record = IndexRecord(
            job=job if number else Job(**{**vars(job), "rate": rate}), backend=backend, handle={"a": 1}
        )
        RunIndex().add(record)
    skyrl("run", "-q", *RATE, "true")

    done = skyrl("cost")

    assert [line[1] == "unknown" for line in costs(done)] == [False, True, True, False]
    assert "backend='mine'" in done.stderr
    assert "the cost of 2 runs is not known" in done.stderr
    values = json.loads(skyrl("cost", "--json").stdout)
    assert (values["unknown"], values["costs"][1]["cost"]) == (2, None)


def test_no_runs(skyrl: Command) -> None:
    """Without runs, the total is 0."""
    assert costs(skyrl("cost")) == [["total", "$0"]]
    assert json.loads(skyrl("cost", "--json").stdout) == {"total": 0, "runs": 0, "unknown": 0, "costs": []}


@given(st.text(max_size=60))
def test_script_of_any_command(command: str) -> None:
    """Every command has a text by which it is grouped."""
    assert isinstance(script_of_command(command), str)
