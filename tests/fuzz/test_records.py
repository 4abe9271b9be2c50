"""Records and messages that come from a volume, from another rank or from a supervisor."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skyrl_modal.backends.local.event_stream import EventStream
from skyrl_modal.container.events import RankEvent
from skyrl_modal.container.rank_connections import Connection, RankServer
from skyrl_modal.errors import CheckoutNotFound, RecordError, SpecError
from skyrl_modal.protocol.codec import ProtocolError, decode_tagged, encode, encode_tagged, from_json
from skyrl_modal.protocol.events import SupervisorEvent
from skyrl_modal.protocol.job import Job, Limits
from skyrl_modal.protocol.log_lines import parse_line
from skyrl_modal.protocol.messages import HeadMessage, Hello, LogLine, RankMessage, StartRay
from skyrl_modal.protocol.rank_config import ClusterTokens, RankConfig
from skyrl_modal.protocol.result import RunResultRecord
from skyrl_modal.protocol.run_folder import RunFolder
from skyrl_modal.protocol.state import RunState
from skyrl_modal.protocol.status import StatusRecord
from skyrl_modal.run.index import IndexRecord
from skyrl_modal.spec.run_spec import RunSpec
from skyrl_modal.spec.stored import decode_spec, encode_spec
from tests.fuzz.inputs import HOSTILE, any_bytes, changed_json, fuzz_settings, json_values

SPEC = encode_spec(RunSpec(secrets=["WANDB_API_KEY"], env={"A": "b"}), checkout=None)
JOB = Job(
    run_id="r-1",
    command="python train.py",
    workdir="/root/SkyRL",
    run_folder="/root/data/.skyrl_modal/runs/r-1",
    created_at="2026-01-01T00:00:00Z",
    tags=("a",),
    env={"A": "b"},
    limits=Limits(retry_exit_codes=(1, 2)),
)
RESULT = RunResultRecord(
    run_id="r-1", state=RunState("succeeded"), returncode=0, attempts=1, started_at="2026-01-01T00:00:00Z", duration=1.0
)
VALID = [
    JOB,
    StatusRecord(state=RunState("running")),
    RESULT,
    IndexRecord(job=JOB, backend="local", handle={"pid": 1}, spec=SPEC),
    RankConfig(addresses=("127.0.0.1", "127.0.0.2"), tokens=ClusterTokens(ranks="a", ray="b")),
]
MESSAGES = [Hello("token", 1, 0), LogLine("text"), StartRay("127.0.0.1:1", {"A": "b"})]


def record_bytes() -> st.SearchStrategy[tuple[type, bytes]]:
    """Return a strategy for a class of records and content for it."""

    def content(valid: Any) -> st.SearchStrategy[tuple[type, bytes]]:
        changed = changed_json(encode(valid)).map(json.dumps).map(str.encode)
        return st.tuples(st.just(type(valid)), changed | any_bytes)

    return st.sampled_from(VALID).flatmap(content)


@fuzz_settings
@given(record_bytes())
def test_record_is_read_or_refused(case: tuple[type, bytes]) -> None:
    """Content of a record is decoded to the types of its fields, or raises ProtocolError."""
    cls, content = case
    try:
        record = from_json(cls, content)
    except ProtocolError:
        return
    assert isinstance(record, cls)
    assert encode(from_json(cls, json.dumps(encode(record)))) is not None
    assert hash_of_types(record) == hash_of_types(from_json(cls, json.dumps(encode(record))))


def hash_of_types(value: Any) -> Any:
    """Return the names of the types in a record, which do not depend on NaN."""
    if dataclasses.is_dataclass(value):
        return [hash_of_types(getattr(value, item.name)) for item in dataclasses.fields(value)]
    return type(value).__name__


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: f"{content[:12]!r}...{len(content)}")
@pytest.mark.parametrize("valid", VALID, ids=lambda valid: type(valid).__name__)
def test_hostile_content_is_refused(valid: Any, content: bytes) -> None:
    """Content that is no record raises ProtocolError, whatever it is."""
    message = ""
    try:
        assert isinstance(from_json(type(valid), content), type(valid))
    except ProtocolError as error:
        message = str(error)
    assert len(message) < 10_000


@fuzz_settings
@given(st.sampled_from(["state.json", "result.json"]), any_bytes)
def test_run_folder_is_read_or_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """A state or a result on a volume is read, or raises ProtocolError."""
    (tmp_path / name).write_bytes(content)
    folder = RunFolder(tmp_path)
    with contextlib.suppress(ProtocolError):
        folder.read_status() if name == "state.json" else folder.read_result()


@fuzz_settings
@given(st.dictionaries(st.sampled_from(sorted(SPEC)), json_values) | changed_json(SPEC) | json_values)
def test_stored_spec_is_read_or_refused(data: Any) -> None:
    """A stored spec is decoded, or raises the documented errors."""
    with contextlib.suppress(SpecError, TypeError, CheckoutNotFound):
        assert isinstance(decode_spec(data), RunSpec)


@fuzz_settings
@given(changed_json(SPEC))
def test_spec_of_an_index_record_is_read_or_refused(data: Any) -> None:
    """The spec of an index record is read, or raises an error of this package."""
    if isinstance(data, dict):
        with contextlib.suppress(RecordError, CheckoutNotFound):
            IndexRecord(job=JOB, backend="local", handle={}, spec=data).read_spec()


@fuzz_settings
@given(st.text() | st.from_regex(r"skyrl-modal (\([a-z_]{0,20}\) )?\| .*", fullmatch=True))
@example("skyrl-modal (of_a_newer_version) | text")
def test_log_line_is_parsed(line: str) -> None:
    """Every line is split into text and cause."""
    text, _ = parse_line(line)
    assert line.endswith(text)


@fuzz_settings
@given(
    st.sampled_from([SupervisorEvent, RankMessage, HeadMessage]),
    st.sampled_from([encode_tagged(item) for item in (*MESSAGES, *VALID)]).flatmap(changed_json) | json_values,
)
def test_message_is_decoded_or_refused(union: Any, data: Any) -> None:
    """A message is decoded to a member of its union, is skipped, or raises ProtocolError."""
    with contextlib.suppress(ProtocolError):
        message = decode_tagged(union, data)
        assert message is None or isinstance(message, typing.get_args(union))


lines = st.lists(
    any_bytes | st.sampled_from([json.dumps(encode_tagged(item)).encode() for item in MESSAGES]), max_size=5
).map(b"\n".join)


@fuzz_settings
@given(lines, st.booleans())
def test_connection_ends_at_foreign_bytes(data: bytes, is_head: bool) -> None:
    """A connection returns messages until bytes arrive that are none; it then returns None and raises nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    sender = threading.Thread(target=send, args=(far, data))
    sender.start()
    connection = Connection(near)
    union = HeadMessage if is_head else RankMessage
    while (message := connection.receive(union)) is not None:
        assert isinstance(message, typing.get_args(union))
    connection.close()
    sender.join()


def send(connected: socket.socket, data: bytes) -> None:
    """Send data and close the socket. The other end may close it first."""
    with contextlib.suppress(OSError), connected:
        connected.sendall(data)


def send_with_token(address: tuple[str, int], data: bytes) -> bytes:
    """Send data to rank 0, and return what arrives before rank 0 closes the connection."""
    with socket.create_connection(address, timeout=5) as connected:
        try:
            connected.sendall(data)
            connected.shutdown(socket.SHUT_WR)
            return connected.recv(100)
        except OSError:  # ConnectionError, or ENOTCONN of shutdown()
            # Rank 0 closed the connection before it had read all data.
            return b""


@fuzz_settings
@given(lines | changed_json(encode_tagged(Hello("token", 1))).map(json.dumps).map(str.encode).map(lambda x: x + b"\n"))
@example(json.dumps({"type": "Hello", "token": "\ud800", "rank": 1}).encode() + b"\n")
@example(json.dumps({"type": "Hello", "token": "tokén", "rank": 1}).encode() + b"\n")
@example(b"[" * 100_000 + b"\n")
def test_rank_server_refuses_strangers(data: bytes) -> None:
    """Rank 0 closes a connection without the run's token, whatever it sends, and no thread fails."""
    failures: list[Any] = []
    events: list[RankEvent] = []
    previous, threading.excepthook = threading.excepthook, failures.append
    listener = socket.create_server(("127.0.0.1", 0))
    server = RankServer(listener, token="another", nodes=3, put=events.append)
    try:
        assert send_with_token(listener.getsockname(), data) == b""
    finally:
        server.close()
        threading.excepthook = previous
    assert (failures, events) == ([], [])


@fuzz_settings
@given(lines, st.binary(max_size=100))
def test_event_stream_of_foreign_bytes(data: bytes, output: bytes) -> None:
    """The events of a supervisor end with its stream; bytes that are no event are ignored."""
    failures: list[Any] = []
    previous, threading.excepthook = threading.excepthook, failures.append
    output_read, output_write = os.pipe()
    events_read, events_write = os.pipe()
    stream = EventStream(output_read, events_read, None)
    writer = threading.Thread(target=write, args=(events_write, data))
    writer.start()
    write(output_write, output)
    try:
        received = list(stream.events())
        writer.join()
    finally:
        threading.excepthook = previous
    assert failures == []
    assert b"".join(getattr(event, "data", b"") for event in received) == output


def write(descriptor: int, data: bytes) -> None:
    """Write data to a pipe and close it."""
    with open(descriptor, "wb") as stream:
        stream.write(data)
