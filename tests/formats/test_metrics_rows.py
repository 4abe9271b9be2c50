"""Metrics files are merged by step, and nothing in a damaged or hostile file raises an error."""

from __future__ import annotations

import json
import math
import os
import struct
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyrl_modal.formats.metrics_rows import FileReader, JsonLinesReader, MergedRows, paused_collection
from skyrl_modal.formats.metrics_steps import MetricsSteps
from skyrl_modal.formats.metrics_writer import PART_BYTES, MetricsFile


def write_rows(
    folder: Path, rows: Mapping[int, Mapping[str, float]], *, attempt: int = 1, source: str = "tracker", **place: Any
) -> MetricsFile:
    """Write rows as one process, and return its file."""
    folder.mkdir(exist_ok=True)
    file = MetricsFile(str(folder), attempt=attempt, **{"started_at": 1.0, "rank": 0, **place})
    for step, values in rows.items():
        file.append(source, step, values)
    return file


def read_rows(folder: Path) -> list[dict[str, float]]:
    """Return the merged rows of a folder without their times."""
    return [{key: value for key, value in row.items() if key != "time"} for row in merge(folder)]


def merge(folder: Path) -> MergedRows:
    """Return the merged rows of a folder."""
    readers = []
    for path in sorted((folder / "metrics").iterdir()):
        attempt, start = path.name.split("-")[:2]
        reader = FileReader((int(attempt), int(start)))
        reader.feed(path.read_bytes())
        readers.append(reader)
    return MergedRows(readers)


def same(rows: list[dict[str, float]]) -> list[dict[str, str]]:
    """Return rows in which NaN is equal to NaN."""
    return [{key: repr(value) for key, value in row.items()} for row in rows]


VALUES = st.floats() | st.integers(-(2**53), 2**53) | st.booleans()
KEYS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(lambda key: key not in ("step", "time"))
ROWS = st.dictionaries(st.integers(0, 2**53), st.dictionaries(KEYS, VALUES, min_size=1), max_size=10)


@given(rows=ROWS)
def test_rows_are_exact(tmp_path_factory: pytest.TempPathFactory, rows: dict[int, dict[str, float]]) -> None:
    """All numbers, also those that are not finite, are read as they were written, and each line is standard JSON."""
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder, rows)
    if rows:
        expected = [{"step": step, **{key: float(value) for key, value in rows[step].items()}} for step in sorted(rows)]
        assert same(read_rows(folder)) == same(expected)
        for path in (folder / "metrics").iterdir():
            for line in path.read_text().splitlines():
                record = json.loads(line, parse_constant=pytest.fail)
                packed = b64decode(record.get("f64", ""))
                exact = struct.unpack(f"<{len(packed) // 8}d", packed)
                assert [repr(float(value)) for value in record.get("values", ())] == [repr(value) for value in exact]


def test_resumed_attempt_replaces_steps(tmp_path: Path) -> None:
    """Rows that are trained again are those of the later attempt, and later ones of the earlier attempt are dropped."""
    write_rows(tmp_path, {step: {"loss": float(step)} for step in range(1, 15)})
    write_rows(tmp_path, {11: {"loss": -11.0}, 12: {"loss": -12.0}}, attempt=2)

    assert read_rows(tmp_path) == [
        *({"step": step, "loss": float(step)} for step in range(1, 11)),
        {"step": 11, "loss": -11.0},
        {"step": 12, "loss": -12.0},
    ]


def test_evaluation_before_a_resumed_training(tmp_path: Path) -> None:
    """SkyRL logs an evaluation at the step from which it continues: the row of that step keeps its other keys."""
    write_rows(tmp_path, {9: {"loss": 9.0}, 10: {"loss": 10.0, "eval": 0.1}, 11: {"loss": 11.0}})
    write_rows(tmp_path, {10: {"eval": 0.2}, 11: {"loss": -11.0}}, attempt=2)

    assert read_rows(tmp_path)[1:] == [{"step": 10, "loss": 10.0, "eval": 0.2}, {"step": 11, "loss": -11.0}]


def test_attempt_that_was_preempted(tmp_path: Path) -> None:
    """An attempt that is started again with the same number is ordered by the start of its container."""
    write_rows(tmp_path, {1: {"loss": 1.0}, 2: {"loss": 2.0}}, started_at=20.0)
    write_rows(tmp_path, {1: {"loss": 0.0}, 2: {"loss": 0.0}, 3: {"loss": 0.0}}, started_at=10.0)

    assert read_rows(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_sources_do_not_replace_each_other(tmp_path: Path) -> None:
    """A script that logs its setup at step 0 in each attempt leaves the rows of the tracker as they are."""
    write_rows(tmp_path, {1: {"loss": 1.0}, 2: {"loss": 2.0}})
    for attempt in (1, 2):
        write_rows(tmp_path, {0: {"setup": float(attempt)}}, source="log_metrics", attempt=attempt)

    assert read_rows(tmp_path) == [{"step": 0, "setup": 2.0}, {"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_processes_of_an_attempt_are_merged(tmp_path: Path) -> None:
    """Processes and ranks add keys to the same step; of equal keys, the later value is kept."""
    write_rows(tmp_path, {1: {"a": 1.0, "both": 1.0}})
    write_rows(tmp_path, {1: {"b": 2.0, "both": 2.0}}, rank=1)

    assert read_rows(tmp_path) == [{"step": 1, "a": 1.0, "b": 2.0, "both": 2.0}]
    assert merge(tmp_path).series("both") == ([1], [2.0])
    assert merge(tmp_path).keys == ("a", "b", "both")


@given(attempts=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 8)), min_size=1, max_size=5))
def test_attempts_equal_an_undisturbed_run(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[tuple[int, int]]
) -> None:
    """Attempts that each continue at a step that was reached give the rows of one undisturbed run."""
    folder, reached = tmp_path_factory.mktemp("run"), 0
    for number, (back, steps) in enumerate(attempts, 1):
        begin = max(1, reached + 1 - back)
        write_rows(folder, {step: {"loss": step / 7} for step in range(begin, begin + steps)}, attempt=number)
        reached = begin + steps - 1

    assert read_rows(folder) == [{"step": step, "loss": step / 7} for step in range(1, reached + 1)]


def test_files_are_divided(tmp_path: Path) -> None:
    """A long run has several files, each of which can be read without the others."""
    file = write_rows(tmp_path, {})
    values = {f"key{number}": number / 3 for number in range(2000)}
    for step in range(200):
        file.append("tracker", step, values)

    paths = list((tmp_path / "metrics").iterdir())
    assert len(paths) > 2
    assert all(path.stat().st_size < PART_BYTES + 200_000 for path in paths)
    assert read_rows(tmp_path) == [{"step": step, **values} for step in range(200)]


def test_keys_named_like_the_row_itself(tmp_path: Path) -> None:
    """A metric named step or time does not replace those of the row."""
    write_rows(tmp_path, {3: {"step": 99.0, "time": -1.0, "a": 1.0}})

    [row] = merge(tmp_path)
    assert (row["step"], row["a"]) == (3, 1.0)
    assert row["time"] > 1e9
    assert merge(tmp_path).keys == ("a",)


def test_unusual_keys(tmp_path: Path) -> None:
    """Keys without UTF-8 are replaced, so that they can be printed and stored."""
    write_rows(tmp_path, {1: {"\ud800": 1.0, "é\n": 2.0}})

    assert read_rows(tmp_path) == [{"step": 1, "?": 1.0, "é\n": 2.0}]


GOOD = (
    b'{"table":0,"source":"tracker","keys":["a"]}\n'
    b'{"table":0,"step":1,"time":5.0,"f64":"AAAAAAAA8D8=","values":[1.0]}\n'
)


@pytest.mark.parametrize(
    "line",
    [
        b'{"table":0,"step":1,"time":5.0,"f64":"AAAAAAAA8D8=","val',
        b'{"table":0,"step":-1,"time":5.0,"f64":"AAAAAAAA8D8=","values":[1.0]}',
        b'{"table":-1,"step":1,"time":5.0,"f64":"AAAAAAAA8D8=","values":[1.0]}',
        b'{"table":7,"step":1,"time":5.0,"f64":"AAAAAAAA8D8=","values":[1.0]}',
        b'{"table":0,"step":1,"time":nan,"f64":"AAAAAAAA8D8=","values":[1.0]}',
        b'{"table":0,"step":1,"time":1e999,"f64":"AAAAAAAA8D8=","values":[1.0]}',
        b'{"table":0,"step":%s,"time":5.0,"f64":"AAAAAAAA8D8=","values":[1.0]}' % (b"9" * 10_000),
        b'{"table":0,"step":1,"time":5.0,"f64":"AAAA","values":[1.0]}',
        b'{"table":0,"step":1,"time":5.0,"f64":"\xff","values":[1.0]}',
        b'{"table":1,"source":"x","keys":[]}',
        b'{"table":1,"source":"x","keys":[1]}',
        b'{"table":1,"source":1,"keys":["a"]}',
        b'{"table":5,"source":"x","keys":["a"]}',
        b'{"table":1,"source":"x","keys":["%s"]}' % (b"a" * 501),
        b'{"table":true,"source":"x","keys":["a"]}',
        b"[" * 100_000,
        b"\x00\xff\xfe",
        b"NaN",
        b'"',
    ],
)
def test_damaged_lines_are_counted(line: bytes) -> None:
    """A line that is not as it is written is skipped and counted; the lines before and after it are read."""
    reader = FileReader()

    reader.feed(GOOD + line + b"\n" + GOOD.splitlines(keepends=True)[1].replace(b'"step":1', b'"step":2'))

    assert [row["step"] for row in MergedRows([reader])] == [1, 2]
    assert reader.skipped == 1


@given(data=st.binary(max_size=300), rest=st.binary(max_size=50))
def test_any_bytes_are_read(data: bytes, rest: bytes) -> None:
    """No content raises an error, in one piece or in several."""
    for content in (data, GOOD + data + b"\n" + rest, GOOD.replace(b"AAAA", data[:8])):
        reader = FileReader()
        reader.feed(content)
        list(MergedRows([reader]))
    lines = JsonLinesReader()
    lines.feed([data, rest])
    list(MergedRows([lines]))


@given(cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_growing_file_is_read_in_parts(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    """A file that is read while it grows gives the rows of the whole file, wherever the parts end."""
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder, {step: {"a": step / 3, **({"b": 1.0} if step % 2 else {})} for step in range(10)})
    [path] = (folder / "metrics").iterdir()
    content = path.read_bytes()

    reader = FileReader((1, 1000))
    for end in [*sorted(cuts), len(content)]:
        reader.feed(content[reader.offset : end])

    assert list(MergedRows([reader])) == list(merge(folder))


def test_lines_of_other_programs() -> None:
    """Numbers of the lines are read; the step is that of the line, under one of its names, else its number."""
    reader = JsonLinesReader()
    lines = [
        {"step": 1, "loss": 0.5, "path": "tinker://x", "nested": {"a": 1}},
        {"step": 1, "eval": 1, "timestamp": 1764243123.5},
        {"global_step": 7, "loss": math.nan, "big": 10**400, "text": "1"},
        {"loss": 4.0},
        {"step": -1, "loss": 1.0},
        {"step": 1.5, "loss": 1.0},
    ]

    reader.feed([json.dumps(line).encode() for line in lines] + [b"no json", b""])

    rows = list(MergedRows([reader]))
    assert rows[0] == {"step": 1, "time": 1764243123.5, "loss": 0.5, "eval": 1.0}
    assert rows[1] == {"step": 3, "time": 0.0, "loss": 4.0}
    assert (rows[2]["step"], math.isnan(rows[2]["loss"]), set(rows[2])) == (7, True, {"step", "time", "loss"})
    assert reader.skipped == 3


# -- the newest step ---------------------------------------------------------------------------------------------------


def test_newest_step_of_growing_files(tmp_path: Path) -> None:
    """The newest step of a rank is known while its files grow, by attempt and in total."""
    steps, other = MetricsSteps(tmp_path, 0), MetricsSteps(tmp_path, None)
    assert (steps.update(), steps.newest(), steps.rows) == (False, None, 0)

    file = write_rows(tmp_path, {1: {"a": 1.0}, 5: {"a": 1.0}})
    write_rows(tmp_path, {9: {"a": 1.0}}, rank=1)
    assert (steps.update(), steps.newest(), steps.rows) == (True, 5, 2)
    assert (other.update(), other.newest()) == (True, 9)
    assert (steps.update(), steps.rows) == (False, 2)

    file.append("tracker", 5, {"a": 2.0})
    write_rows(tmp_path, {3: {"a": 1.0}}, attempt=2)
    assert (steps.update(), steps.rows) == (True, 4)
    assert (steps.newest(), steps.newest(1), steps.newest(2), steps.newest(3)) == (5, 5, 3, None)


def test_newest_step_of_hostile_files(tmp_path: Path) -> None:
    """Links, folders, pipes, cut lines and files without an end are no steps, and do not block."""
    folder = tmp_path / "metrics"
    write_rows(tmp_path, {2: {"a": 1.0}})
    [good] = folder.iterdir()
    (folder / "1-1000-0-aa-0.jsonl").symlink_to(good)
    (folder / "1-1000-0-ab-0.jsonl").mkdir()
    os.mkfifo(folder / "1-1000-0-ac-0.jsonl")
    (folder / "1-1000-0-ad-0.jsonl").write_bytes(b'{"table":0,"step":7,"time":1')
    (folder / "1-1000-0-ae-0.jsonl").write_bytes(b"x" * (9 << 20))
    (folder / "other.jsonl").write_bytes(GOOD.replace(b'"step":1', b'"step":8'))
    steps = MetricsSteps(tmp_path)

    assert (steps.update(), steps.newest()) == (True, 2)
    with (folder / "1-1000-0-ad-0.jsonl").open("ab") as file:
        file.write(b'.5,"f64":"AAAAAAAA8D8=","values":[1.0]}\n')
    assert (steps.update(), steps.newest()) == (True, 7)


@pytest.mark.slow
def test_many_steps_are_read_quickly(tmp_path: Path) -> None:
    """100,000 steps with 60 keys are read in under one second of processor time."""
    file = write_rows(tmp_path, {})
    keys = [f"group/{number}/name" for number in range(60)]
    for step in range(100_000):
        file.append("tracker", step, {key: step / (number + 3) for number, key in enumerate(keys)})
    seconds = []
    for _ in range(3):  # the machine may be loaded
        begin = time.process_time()
        with paused_collection():
            rows = merge(tmp_path)
        seconds.append(time.process_time() - begin)
        assert len(rows) == 100_000
        del rows

    assert min(seconds) < 1.0


def test_packed_values_are_little_endian(tmp_path: Path) -> None:
    """The values are stored twice: as decimals, and as base64 of float64 in little-endian order."""
    write_rows(tmp_path, {4: {"a": 0.1, "b": math.inf}})
    [path] = (tmp_path / "metrics").iterdir()

    table, row = map(json.loads, path.read_text().splitlines())
    assert table == {"table": 0, "source": "tracker", "keys": ["a", "b"]}
    assert (row["table"], row["step"], row["values"]) == (0, 4, [0.1, "Infinity"])
    assert row["f64"] == b64encode(struct.pack("<2d", 0.1, math.inf)).decode()
