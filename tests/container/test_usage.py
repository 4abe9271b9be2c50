"""Tests of the counted time of containers: what is known about earlier ones, damaged records, and the budget."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from skyrl_modal.container import usage_meter
from skyrl_modal.container.events import RankDisconnected, RankJoined
from skyrl_modal.container.usage_meter import UPDATE_INTERVAL, UsageMeter, process_age
from skyrl_modal.protocol.codec import from_json, to_json
from skyrl_modal.protocol.job import Job, Limits, NodeRate
from skyrl_modal.protocol.leases import RENEWAL_INTERVAL, ContainerEntry
from skyrl_modal.protocol.messages import Hello
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import read_record, write_record
from skyrl_modal.protocol.state import RunState, StopReason
from skyrl_modal.protocol.usage import USAGE_FILE, ContainerUsage, UsageRecord


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count this process from its start, whatever an earlier test has counted."""
    monkeypatch.setattr(usage_meter, "_counted", [])


#: One US dollar per second.
RATE = NodeRate(per_hour=3600.0)
CREATED = "2026-01-01T00:00:00+00:00"
RESULT = RunResultRecord(
    run_id="r1", state=RunState.SUCCEEDED, returncode=0, attempts=1, started_at=CREATED, duration=1.0
)


def make_job(folder: Path, **fields: Any) -> Job:
    """Return a job with its folder."""
    return Job(run_id="r1", command="true", workdir="/", run_folder=str(folder), created_at=CREATED, **fields)


def stored(folder: Path) -> UsageRecord:
    """Return the stored record."""
    record = read_record(UsageRecord, folder / USAGE_FILE)
    assert record is not None
    return record


def earlier(seconds: float, *, seen_before: float, **fields: Any) -> tuple[ContainerUsage, UsageRecord]:
    """Return a container that has run for some seconds, and the last record, which was written some seconds ago."""
    moment = time.time() - seen_before
    item = ContainerUsage(container="old", rank=0, started_at=moment - seconds, seconds=seconds, attempt=1, **fields)
    return item, UsageRecord(containers=(item,), updated_at=moment)


def test_age_of_a_process() -> None:
    """The age is that of the process, as the system counts it."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    started = ticks / os.sysconf("SC_CLK_TCK")

    assert process_age() == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]) - started, abs=0.2)


def test_container_that_ended_is_kept(tmp_path: Path) -> None:
    """The time of a container that has ended does not change."""
    _, record = earlier(10.0, seen_before=500.0, has_ended=True)
    write_record(tmp_path / USAGE_FILE, record)
    UsageMeter(make_job(tmp_path), RATE, "new").write()

    first, second = stored(tmp_path).containers

    assert (first.seconds, first.is_estimated) == (10.0, False)
    assert (second.container, second.has_ended) == ("new", False)


@pytest.mark.parametrize(
    ("renewed_before", "extra"), [(1.0, 1.0), (100.0, RENEWAL_INTERVAL), (-5.0, 0.0)], ids=["soon", "late", "overlap"]
)
def test_killed_container_by_its_lease(tmp_path: Path, renewed_before: float, extra: float) -> None:
    """A container that was killed ended before its next renewal, and before this process started."""
    seen_at = time.time() - process_age() - renewed_before
    item = ContainerUsage(container="old", rank=0, started_at=seen_at - 14.0, seconds=1.0)
    write_record(tmp_path / USAGE_FILE, UsageRecord(containers=(item,), updated_at=seen_at - 13.0))
    entry = ContainerEntry("old", 4, started_at=seen_at - 14.0, seen_at=seen_at)

    first = UsageMeter(make_job(tmp_path), RATE, "new", entry).record().containers[0]

    assert first.seconds == pytest.approx(14.0 + extra, abs=0.3)
    assert (first.has_ended, first.is_estimated) == (True, True)


def test_killed_container_without_a_lease(tmp_path: Path) -> None:
    """Without a lease, a container that was killed would have written its next record."""
    _, record = earlier(10.0, seen_before=process_age() + 500.0)
    write_record(tmp_path / USAGE_FILE, record)

    first = UsageMeter(make_job(tmp_path), RATE, "new").record().containers[0]

    assert first.seconds == pytest.approx(10.0 + UPDATE_INTERVAL, abs=0.3)


def test_container_that_was_killed_before_its_first_record(tmp_path: Path) -> None:
    """It is known by its lease only, and so are its other ranks."""
    seen_at = time.time() - process_age() - 50
    entry = ContainerEntry("old", 4, started_at=seen_at - 20, seen_at=seen_at)

    record = UsageMeter(make_job(tmp_path, nodes=2), RATE, "new", entry).record()

    assert [item.rank for item in record.containers] == [0, 1, 0, 1]
    assert [item.seconds for item in record.containers[:2]] == pytest.approx([20 + RENEWAL_INTERVAL] * 2, abs=0.3)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"{", b'{"containers": 3}', b'{"containers": [{"seconds": -1}]}', b"\xff" * 10, b"[" * 100_000),
        b'{"containers": [{"container": "a", "rank": 0, "started_at": 0, "seconds": 1e999}]}',
    ],
)
def test_damaged_record(tmp_path: Path, content: bytes) -> None:
    """A record that cannot be read counts as absent."""
    (tmp_path / USAGE_FILE).write_bytes(content)
    meter = UsageMeter(make_job(tmp_path), RATE, "new")
    meter.write()

    assert [item.container for item in stored(tmp_path).containers] == ["new"]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_other_files_instead_of_the_record(tmp_path: Path, kind: str) -> None:
    """A link is not followed, a named pipe does not block, and a folder does not end the run."""
    path, target = tmp_path / USAGE_FILE, tmp_path / "target"
    if kind == "link":
        target.write_text("untouched")
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    meter = UsageMeter(make_job(tmp_path), RATE, "new")
    meter.write()

    assert meter.end(RESULT).cost is not None
    assert kind != "link" or target.read_text() == "untouched"


NUMBERS = st.one_of(st.floats(), st.floats(0, 2e9), st.sampled_from([0.0, 1e11, 1e308]))


@hypothesis.given(
    item=st.tuples(NUMBERS, NUMBERS, st.booleans()), updated_at=NUMBERS, lease=st.tuples(NUMBERS, NUMBERS)
)
@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_times(
    tmp_path: Path, item: tuple[float, float, bool], updated_at: float, lease: tuple[float, float]
) -> None:
    """Whatever times an earlier record and a lease have, the result has a finite time and a finite cost."""
    entry = {"container": "old", "rank": 0, "started_at": item[0], "seconds": item[1], "has_ended": item[2]}
    (tmp_path / USAGE_FILE).write_text(json.dumps({"containers": [entry], "updated_at": updated_at}))
    killed = ContainerEntry.decode(f"old 3 running {lease[0]:.3f} {lease[1]:.3f}")
    meter = UsageMeter(make_job(tmp_path), RATE, "new", None if killed.seen_at is None else killed)

    result = meter.end(RESULT)

    assert from_json(RunResultRecord, to_json(result)) == result
    assert stored(tmp_path).seconds >= 0


def test_ranks_join_and_leave(tmp_path: Path) -> None:
    """A rank is counted from its own start until it is disconnected."""
    meter = UsageMeter(make_job(tmp_path, nodes=3), RATE, "new")
    own = meter.record().containers[0].seconds
    meter.watch_rank(RankJoined(1, Hello("token", 1, age=own + 60)))
    meter.watch_rank(RankDisconnected(1))
    meter.watch_rank(RankJoined(7, Hello("token", 7, age=5.0)))

    first, second, third = meter.record().containers

    assert (first.has_ended, second.has_ended, third.has_ended) == (False, True, False)
    assert second.seconds == pytest.approx(own + 60, abs=0.5)
    assert third.seconds == first.seconds


def test_budget_requests_a_stop(tmp_path: Path) -> None:
    """The stop is requested when all containers together have used up the budget."""
    requested = threading.Event()
    reasons: list[StopReason] = []

    def stop(reason: StopReason) -> None:
        reasons.append(reason)
        requested.set()

    meter = UsageMeter(make_job(tmp_path, nodes=2, limits=Limits(budget=1.0)), RATE, "new")
    spent = meter.record().seconds
    meter = UsageMeter(make_job(tmp_path, nodes=2, limits=Limits(budget=spent + 2.0)), RATE, "new")
    begin = time.monotonic()

    assert meter.begin(stop)
    assert requested.wait(10)

    assert time.monotonic() - begin == pytest.approx(1.0, abs=0.5)
    assert (reasons, meter.is_spent) == ([StopReason.OVER_BUDGET], True)
    assert meter.end(RESULT).cost == pytest.approx(spent + 2.0, abs=1.0)


def test_budget_that_is_used_up_before(tmp_path: Path) -> None:
    """Earlier containers have used up the budget: nothing is started."""
    _, record = earlier(1000.0, seen_before=500.0, has_ended=True)
    write_record(tmp_path / USAGE_FILE, record)
    meter = UsageMeter(make_job(tmp_path, limits=Limits(budget=900.0)), RATE, "new")

    assert not meter.begin(lambda reason: None)
    assert meter.is_spent


def test_entry_of_a_lease_with_times() -> None:
    """A value with times is read again, and one without them, or with others, has none."""
    entry = ContainerEntry("a1", 3, is_ending=True, started_at=1000.5, seen_at=1003.25)

    assert ContainerEntry.decode(entry.encode()) == entry
    assert ContainerEntry.decode("a1 3 ending").seen_at is None
    assert ContainerEntry.decode("a1 3 running nan 1e9").started_at is None
