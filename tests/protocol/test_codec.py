"""Tests of the codec between dataclasses and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.dataclass import dataclass, field
from skyrl_modal.protocol.codec import (
    ProtocolError,
    TolerantStrEnum,
    decode,
    decode_tagged,
    encode,
    encode_tagged,
    from_json,
    to_json,
)
from skyrl_modal.protocol.events import MessageEvent, StateEvent, SupervisorEvent
from skyrl_modal.protocol.job import (
    SCHEMA_VERSION,
    CheckoutFacts,
    Job,
    Limits,
    Mount,
    RayOptions,
    Volume,
    WorkerLossPolicy,
)
from skyrl_modal.protocol.result import MAX_RETURNCODE, OutputRecord, RunResultRecord, StreamDigest
from skyrl_modal.protocol.state import FailureCause, NextStart, RunState, StopReason
from skyrl_modal.protocol.status import StatusRecord

TEXT = st.text(max_size=20)
NUMBER = st.integers(0, 2**53)
SECONDS = st.floats(0, 1e9)


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for None or a value."""
    return st.none() | values


def tuples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """Return a strategy for short tuples."""
    return st.lists(values, max_size=3).map(tuple)


ENV = st.dictionaries(TEXT, TEXT, max_size=3)
JOBS = st.builds(
    Job,
    run_id=TEXT,
    command=TEXT,
    workdir=TEXT,
    run_folder=TEXT,
    created_at=TEXT,
    repo_root=optional(TEXT),
    data_root=optional(TEXT),
    name=optional(TEXT),
    tags=tuples(TEXT),
    env=ENV,
    secret_names=tuples(TEXT),
    mounts=tuples(st.builds(Mount, remote_path=TEXT, files=NUMBER, bytes=NUMBER, is_checkout=st.booleans())),
    volumes=tuples(st.builds(Volume, name=TEXT, mount_path=TEXT, version=optional(st.sampled_from([1, 2])))),
    image=TEXT,
    nodes=NUMBER,
    gpus_per_node=optional(NUMBER),
    ray=optional(
        st.builds(
            RayOptions,
            port=NUMBER,
            dashboard=st.booleans(),
            num_cpus=optional(NUMBER),
            start_timeout=SECONDS,
            env=ENV,
            on_worker_loss=st.sampled_from(WorkerLossPolicy),
        )
    ),
    limits=st.builds(
        Limits,
        attempt_timeout=SECONDS,
        total_timeout=optional(SECONDS),
        retries=NUMBER,
        retry_exit_codes=optional(tuples(NUMBER)),
    ),
    checkout=optional(st.builds(CheckoutFacts, commit=optional(TEXT), changed_files=optional(NUMBER))),
)
RESULTS = st.builds(
    RunResultRecord,
    run_id=TEXT,
    state=st.sampled_from([state for state in RunState if state.is_final or state is RunState.UNKNOWN]),
    returncode=st.integers(0, MAX_RETURNCODE),
    attempts=NUMBER,
    started_at=st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    duration=SECONDS,
    cause=optional(st.sampled_from(FailureCause)),
    stop_reason=optional(st.sampled_from(StopReason)),
    failed_rank=optional(NUMBER),
    detail=TEXT,
    output=st.builds(
        OutputRecord,
        bytes=NUMBER,
        error=optional(TEXT),
        live=optional(st.builds(StreamDigest, characters=NUMBER, sha256=TEXT)),
    ),
    volume_error=optional(TEXT),
    next_start=st.sampled_from(NextStart),
)


class Color(TolerantStrEnum):
    """An enum with a member for unknown values."""

    RED = "red"
    UNKNOWN = "unknown"


class Shape(TolerantStrEnum):
    """An enum without a member for unknown values."""

    ROUND = "round"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A record with a required field, and with defaults of several types."""

    name: str
    size: float = 1.0
    color: Color = Color.RED
    shape: Shape = Shape.ROUND
    tags: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    inner: Limits | None = None
    schema_version: int = 2


@given(JOBS | RESULTS)
def test_records_survive_a_round_trip(record: Any) -> None:
    """Decoding the JSON text of a record returns an equal record."""
    assert from_json(type(record), to_json(record)) == record


@given(JOBS | RESULTS, st.dictionaries(st.text(min_size=1).map("new_{}".format), st.integers()))
def test_unknown_keys_are_ignored(record: Any, extra: dict[str, int]) -> None:
    """A record of a newer version with the same schema is read without its new keys."""
    assert decode(type(record), {**encode(record), **extra}) == record


@given(RESULTS, st.data())
def test_missing_keys_take_their_default(record: RunResultRecord, data: st.DataObject) -> None:
    """A record of an older version is read with the defaults of the fields that it lacks."""
    defaults = {item.name: item.default for item in dataclasses.fields(record)}
    optional_names = sorted(name for name, default in defaults.items() if default is not dataclasses.MISSING)
    removed = data.draw(st.sets(st.sampled_from(optional_names)))

    decoded = decode(RunResultRecord, {name: value for name, value in encode(record).items() if name not in removed})

    assert decoded == dataclasses.replace(record, **{name: defaults[name] for name in removed})


def test_missing_required_key_is_refused() -> None:
    """A record without a field that has no default raises ProtocolError."""
    with pytest.raises(ProtocolError, match=r"Sample\.name"):
        decode(Sample, {"size": 2})


def test_unknown_enum_value_becomes_unknown() -> None:
    """A value that this version does not know becomes the member UNKNOWN."""
    assert decode(Sample, {"name": "a", "color": "blue"}).color is Color.UNKNOWN


@pytest.mark.parametrize("enum", [RunState, StopReason, FailureCause, NextStart, WorkerLossPolicy])
def test_protocol_enums_accept_unknown_values(enum: type[TolerantStrEnum]) -> None:
    """No enum of the protocol raises for a value of a later version."""
    assert enum("a value of a later version") == "unknown"


def test_enum_without_unknown_member_refuses() -> None:
    """An enum that has no member UNKNOWN raises ProtocolError for an unknown value."""
    with pytest.raises(ProtocolError, match=r"Sample\.shape"):
        decode(Sample, {"name": "a", "shape": "square"})


@pytest.mark.parametrize("cls", [Job, RunResultRecord, StatusRecord])
def test_newer_schema_is_refused(cls: type[Any]) -> None:
    """A record of a newer schema raises ProtocolError, which names both versions."""
    with pytest.raises(ProtocolError, match=f"schema 99.*up to {SCHEMA_VERSION}"):
        decode(cls, {"schema_version": 99})


@pytest.mark.parametrize("version", ["2", None, True, 2.0])
def test_schema_version_must_be_a_number(version: Any) -> None:
    """A schema version that is not a whole number raises ProtocolError."""
    with pytest.raises(ProtocolError, match="schema_version"):
        decode(Sample, {"name": "a", "schema_version": version})


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": 1},
        {"name": None},
        {"size": "large"},
        {"size": True},
        {"color": 3},
        {"tags": "one"},
        {"tags": [1]},
        {"counts": ["a"]},
        {"counts": {"a": "b"}},
        {"inner": "text"},
        {"inner": {"retries": "two"}},
    ],
)
def test_values_of_another_type_are_refused(wrong: dict[str, Any]) -> None:
    """A value of another type raises ProtocolError, which names the field."""
    with pytest.raises(ProtocolError, match=r"Sample|Limits"):
        decode(Sample, {"name": "a", **wrong})


def test_whole_number_is_read_as_float() -> None:
    """JSON does not distinguish 2 from 2.0: a float field accepts both and returns a float."""
    size = decode(Sample, {"name": "a", "size": 2}).size

    assert (size, type(size)) == (2.0, float)


@pytest.mark.parametrize("text", ["", "[]", "no json", '"text"', "null", b"\xff\xfe"])
def test_text_that_is_not_a_record_is_refused(text: str | bytes) -> None:
    """Text that is not a JSON object raises ProtocolError."""
    with pytest.raises(ProtocolError):
        from_json(Job, text)


@pytest.mark.parametrize("event", [MessageEvent("text", cause=FailureCause.RAY_EXITED), StateEvent(RunState.RUNNING)])
def test_tagged_records_survive_a_round_trip(event: Any) -> None:
    """A member of a union is decoded as the class that its tag names."""
    assert decode_tagged(SupervisorEvent, encode_tagged(event)) == event


def test_unknown_tag_is_ignored() -> None:
    """A member of a union that this version does not know decodes to None."""
    assert decode_tagged(SupervisorEvent, {"type": "NewEvent", "value": 1}) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"name": "a", "size": NaN}',
        '{"name": "a", "size": Infinity}',
        '{"name": "a", "size": 1%s}' % ("0" * 400),
        '{"name": "a", "size": 1%s}' % ("0" * 5000),
        '{"name": "a", "color": ["red"]}',
        '{"name": "\\ud800", "size": "1"}',
        "null",
        "\x00",
    ],
    ids=["lists", "objects", "nan", "infinity", "400 digits", "5000 digits", "list", "surrogate", "null", "zero"],
)
def test_hostile_text_is_refused(text: str) -> None:
    """Text that no version writes raises ProtocolError and nothing else."""
    with pytest.raises(ProtocolError):
        from_json(Sample, text)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "running"},
        {"returncode": -1},
        {"returncode": 10**30},
        {"started_at": "yesterday"},
        {"started_at": "2026-01-01T00:00:00"},
        {"duration": float("nan")},
    ],
    ids=str,
)
def test_impossible_result_is_refused(changes: dict[str, object]) -> None:
    """A result that no run can have raises ProtocolError, so that its readers need no checks."""
    data = {
        "run_id": "r1", "state": "failed", "returncode": 1, "attempts": 1,
        "started_at": "2026-01-01T00:00:00+00:00", "duration": 1.0,
    }  # fmt: skip
    assert decode(RunResultRecord, data).returncode == 1

    with pytest.raises(ProtocolError):
        decode(RunResultRecord, {**data, **changes})


def test_unknown_state_of_a_result_is_accepted() -> None:
    """A result with a state of a later version is read as unknown."""
    data = {
        "run_id": "r1", "state": "of a later version", "returncode": 1, "attempts": 1,
        "started_at": "2026-01-01T00:00:00+00:00", "duration": 1.0,
    }  # fmt: skip

    assert decode(RunResultRecord, data).state is RunState.UNKNOWN
