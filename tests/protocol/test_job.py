"""The records of runs on this machine: many writers, broken files, later versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from skyrl_modal import Run, RunNotFound, SpecError, runs
from skyrl_modal.protocol.job import Job

WRITER = """
import sys
from skyrl_modal.protocol.job import Job, new_run_id
from skyrl_modal.run.index import IndexRecord, RunIndex
for number in range(int(sys.argv[1])):
    job = Job(id=new_run_id(), command=f"echo {number}", workdir="/", run_dir="/root/x")
    RunIndex().add(IndexRecord(job, "local", {"pid": 1, "run_dir": "/nowhere"}))
    print(job.id)
"""


@pytest.fixture
def own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return platformdirs.user_state_path("skyrl_modal") / "index"


def test_records_written_at_once_by_many_processes_can_all_be_read(own_index: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(13)], stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    ids = [line for writer in writers for line in writer.communicate()[0].split()]

    found = [run.id for run in runs(limit=None)]

    assert len(ids) == 104
    assert sorted(found) == sorted(ids)
    assert found == sorted(found, reverse=True)
    assert {name for name in os.listdir(own_index) if not name.endswith(".json")} == set()


def test_a_broken_record_does_not_hide_the_others(own_index: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITER, "2"], check=True, stdout=subprocess.DEVNULL)
    whole = sorted(own_index.iterdir())[0].read_text()
    (own_index / "20200101-000000-cut.json").write_text(whole[: len(whole) // 2])
    (own_index / "20200101-000000-foreign.json").write_text("[1, 2]")
    later = json.loads(whole)
    later["job"]["version"] = 99
    (own_index / "20200101-000000-later.json").write_text(json.dumps(later))

    with pytest.warns(UserWarning, match="is no record of a run and is skipped") as caught:
        found = runs()

    assert len(found) == 2
    assert len(caught) == 3


@pytest.mark.parametrize("run_id", ["nothing", "", "../../etc/passwd", "a/b"])
def test_an_id_that_is_none_is_not_found(own_index: Path, run_id: str) -> None:
    with pytest.raises(RunNotFound):
        Run.attach(run_id)


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json", '{"version": 1}', '{"version": "x"}'])
def test_a_text_that_is_no_job_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        Job.from_json(text)
