"""Tests of the index of runs: concurrent writers, damaged records, and backends that are not installed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest

from skyrl_modal import AmbiguousRun, BackendUnavailable, Launcher, Run, RunNotFound, RunState, runs
from skyrl_modal.errors import RecordError
from skyrl_modal.protocol.job import Job
from skyrl_modal.run.index import IndexRecord, RunIndex

WRITER = """
import sys
from skyrl_modal.protocol.run_id import new_run_id
from skyrl_modal.protocol.job import Job
from skyrl_modal.run.index import IndexRecord, RunIndex
for number in range(int(sys.argv[1])):
    job = Job(run_id=new_run_id(), command=f"echo {number}", workdir="/", run_folder="/root/x",
              created_at="2026-01-01T00:00:00+00:00")
    RunIndex().add(IndexRecord(job=job, backend="local", handle={"pid": 1, "run_dir": "/nowhere"}))
    print(job.run_id)
"""


def make_record(run_id: str, backend: str = "local", **handle: str | int) -> IndexRecord:
    """Return a record of a run."""
    job = Job(run_id=run_id, command="true", workdir="/", run_folder="/root/x", created_at="2026-01-01T00:00:00+00:00")
    return IndexRecord(job=job, backend=backend, handle=handle or {"pid": 1, "run_dir": "/nowhere"})


@pytest.fixture
def index_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an empty index."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return platformdirs.user_state_path("skyrl_modal") / "index"


def test_concurrent_writers(index_folder: Path) -> None:
    """Records that several processes write at the same time can all be read, the newest first."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, "13"], stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    ids = [line for writer in writers for line in writer.communicate()[0].split()]

    found = [run.id for run in runs(limit=None)]

    assert len(ids) == 104
    assert sorted(found) == sorted(ids)
    seconds = [run_id.rpartition("-")[0] for run_id in found]
    assert seconds == sorted(seconds, reverse=True)
    assert {name for name in os.listdir(index_folder) if not name.endswith(".json")} == set()


def test_damaged_records_do_not_hide_others(index_folder: Path) -> None:
    """Records that are damaged, or have a newer schema, are skipped with a warning each."""
    RunIndex().add(make_record("20260101-000000-aaaaaa"))
    RunIndex().add(make_record("20260101-000000-bbbbbb"))
    content = (index_folder / "20260101-000000-aaaaaa.json").read_text()
    (index_folder / "20200101-000000-cut.json").write_text(content[: len(content) // 2])
    (index_folder / "20200101-000000-foreign.json").write_text("[1, 2]")
    (index_folder / "20200101-000000-folder.json").mkdir()
    newer = json.loads(content)
    newer["job"]["schema_version"] = 99
    (index_folder / "20200101-000000-newer.json").write_text(json.dumps(newer))

    with pytest.warns(UserWarning, match="skipping a record") as caught:
        found = runs()

    assert [run.id for run in found] == ["20260101-000000-bbbbbb", "20260101-000000-aaaaaa"]
    assert len(caught) == 4


def test_damaged_record_raises_for_its_run(index_folder: Path) -> None:
    """Attaching to a run whose record is damaged raises RecordError, which names the file."""
    index_folder.mkdir(parents=True)
    (index_folder / "r1.json").write_text("{")

    with pytest.raises(RecordError) as caught:
        Run.attach("r1")

    assert caught.value.path == str(index_folder / "r1.json")


def test_run_on_missing_backend_is_unknown(index_folder: Path) -> None:
    """A run on a backend that is not installed is listed as unknown, and affects no other run."""
    RunIndex().add(make_record("20260101-000000-aaaaaa", backend="mine", id="7"))
    RunIndex().add(make_record("20260101-000000-bbbbbb"))

    found = {run.id: run for run in runs()}

    missing = found["20260101-000000-aaaaaa"]
    assert len(found) == 2
    assert (missing.state, missing.backend, missing.url) == (RunState.UNKNOWN, "mine", None)
    assert missing.unavailable_reason is not None
    with pytest.raises(BackendUnavailable):
        missing.wait(0)
    with pytest.raises(BackendUnavailable):
        list(missing.logs())


def test_damaged_handle_affects_its_run_only(index_folder: Path) -> None:
    """A run whose handle its backend cannot use is listed as unknown."""
    RunIndex().add(make_record("20260101-000000-aaaaaa", unexpected="handle"))

    [run] = runs()

    assert run.state in (RunState.UNKNOWN, RunState.LOST)


def test_unknown_enum_value_in_a_record(index_folder: Path) -> None:
    """A record with an enum value of a later version is read."""
    RunIndex().add(make_record("r1"))
    path = index_folder / "r1.json"
    content = json.loads(path.read_text())
    content["job"]["ray"] = {"on_worker_loss": "of a later version"}
    path.write_text(json.dumps(content))

    [run] = runs()

    assert run.job.ray is not None
    assert run.job.ray.on_worker_loss == "unknown"


@pytest.mark.parametrize("run_id", ["nothing", "", "../../etc/passwd", "a/b", "a\0b"])
def test_unknown_id_is_not_found(index_folder: Path, run_id: str) -> None:
    """An id that no run has raises RunNotFound, also if it is a path."""
    with pytest.raises(RunNotFound):
        Run.attach(run_id)


def test_similar_ids_are_suggested(index_folder: Path) -> None:
    """The error for an unknown id contains similar ones."""
    RunIndex().add(make_record("20260101-000000-aaaaaa"))

    with pytest.raises(RunNotFound) as caught:
        Run.attach("20260101-000001")

    assert caught.value.nearest == ["20260101-000000-aaaaaa"]


def test_run_is_found_by_beginning_name_and_latest(index_folder: Path) -> None:
    """The beginning of an id, the name of a run and ``latest`` name a run. Several matches are an error with them."""
    ids = ["20260101-000000-aaaaaa", "20260101-000001-bbbbbb", "20260102-000000-cccccc"]
    for run_id, name in zip(ids, ("one", "two", "two"), strict=True):
        record = make_record(run_id)
        RunIndex().add(replace(record, job=replace(record.job, name=name)))

    assert Run.attach("20260102").id == Run.attach("latest").id == ids[2]
    assert Run.attach("one").id == ids[0]
    for text, matches in (("two", [ids[2], ids[1]]), ("20260101", [ids[1], ids[0]])):
        with pytest.raises(AmbiguousRun) as caught:
            Run.attach(text)
        assert caught.value.nearest == matches
        assert ids[1] in str(caught.value)


def test_latest_of_no_runs(index_folder: Path) -> None:
    """Without runs, ``latest`` is not found."""
    with pytest.raises(RunNotFound):
        Run.attach("latest")


def test_records_are_private(index_folder: Path) -> None:
    """Only the user may read a record, since a handle may contain a token."""
    RunIndex().add(make_record("r1", ray_token="0123"))

    assert stat.S_IMODE((index_folder / "r1.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(index_folder.stat().st_mode) == 0o700
    assert "0123" not in repr(RunIndex().get("r1"))
    assert runs()[0].dashboard_token == "0123"


def test_spec_of_a_newer_version_is_restored(index_folder: Path, checkout: Path) -> None:
    """Unknown keys of a stored spec are ignored, and missing ones take their default."""
    launcher = Launcher(backend="local", checkout=checkout, timeout="2h", name="first", tags=["a", "b"])
    plan = launcher.plan("true")
    spec = {**plan.stored_spec, "of_a_later_version": 1}
    del spec["retries"]
    RunIndex().add(IndexRecord(job=plan.job, backend="local", handle={"pid": 1}, spec=spec))

    with pytest.warns(UserWarning, match="differ"):  # a plan has no digest of the files
        restored, command = Launcher.from_run(plan.job.run_id)

    assert (restored, command) == (launcher, "true")


@pytest.mark.parametrize("spec", [{"timeout": "soon"}, {"volumes": ["data"]}, {"image": "ubuntu"}, {"mounts": 3}])
def test_damaged_spec_raises_record_error(index_folder: Path, spec: dict[str, object]) -> None:
    """A stored spec with invalid values raises RecordError, and the run is listed all the same."""
    record = make_record("r1")
    RunIndex().add(IndexRecord(job=record.job, backend="local", handle=record.handle, spec=spec))

    with pytest.raises(RecordError, match="r1"):
        Launcher.from_run("r1")

    assert [run.id for run in runs()] == ["r1"]


def test_runs_of_one_second_are_ordered_by_their_starts(index_folder: Path) -> None:
    """The random part of an id does not decide which of two runs is the newest."""
    started = ["20260131-120000-ffffff", "20260131-120000-000000", "20260131-120000-777777"]
    for run_id in started:
        RunIndex().add(make_record(run_id))
    RunIndex().add(make_record("20260131-115959-999999"))

    assert [record.job.run_id for record in RunIndex().newest_first()] == [*started[::-1], "20260131-115959-999999"]
    assert RunIndex().find("latest").job.run_id == started[-1]
