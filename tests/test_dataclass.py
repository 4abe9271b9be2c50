"""Tests of the records' own variant of dataclasses, by what callers of records use."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import skyrl_modal
from skyrl_modal.dataclass import replace
from skyrl_modal.protocol.events import MessageEvent, MessageLevel
from skyrl_modal.protocol.job import Job, Limits, Mount
from skyrl_modal.protocol.rank_config import ClusterTokens

JOB = Job(
    run_id="r", command="true", workdir="/", run_folder="/r", created_at="2026-01-01", mounts=(Mount(remote_path="/m"),)
)


def test_functions_of_dataclasses_accept_records() -> None:
    """``dataclasses.asdict``, ``replace`` and ``fields`` work as with a class of ``dataclasses``."""
    assert dataclasses.is_dataclass(Job)
    assert dataclasses.asdict(JOB)["mounts"][0]["remote_path"] == "/m"
    assert dataclasses.replace(JOB, command="false") == replace(JOB, command="false") != JOB
    assert [item.name for item in dataclasses.fields(Mount)] == [
        "remote_path",
        "files",
        "bytes",
        "is_checkout",
        "digest",
    ]


def test_records_can_be_copied_and_pickled() -> None:
    """A copy of a record is equal to it, and has the same hash."""
    for other in (copy.copy(JOB), copy.deepcopy(JOB), pickle.loads(pickle.dumps(JOB))):
        assert other == JOB
    assert len({MessageEvent("a"), MessageEvent("a"), MessageEvent("b")}) == 2


def test_signature_names_the_fields() -> None:
    """``help`` and the documentation show the fields with their defaults."""
    parameters = inspect.signature(MessageEvent).parameters
    assert list(parameters) == ["text", "level", "cause"]
    assert parameters["level"].default is MessageLevel.INFO
    assert inspect.signature(Limits).parameters["retries"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    ("args", "values"),
    [((), {}), (("a", "b"), {"level": "b"}), (("a", "b", None, 1), {}), (("a",), {"unknown": 1})],
    ids=["missing", "twice", "too many", "unknown"],
)
def test_wrong_arguments_are_refused(args: tuple[object, ...], values: dict[str, object]) -> None:
    """A missing, repeated or unknown argument raises TypeError."""
    with pytest.raises(TypeError, match="MessageEvent"):
        MessageEvent(*args, **values)  # type: ignore[arg-type]  # this is the test


def test_positional_arguments_of_keyword_fields_are_refused() -> None:
    """The fields of a class with ``kw_only`` cannot be passed by their position."""
    with pytest.raises(TypeError):
        Mount("/m")  # type: ignore[misc]  # this is the test


def test_default_mapping_is_not_shared() -> None:
    """A default that can be changed is created for each record."""
    assert JOB.env is not replace(JOB, env={}).env
    assert Job(**{**vars(JOB), "env": {}}).env is not JOB.env


def test_tokens_are_not_shown() -> None:
    """``repr`` omits the fields that are confidential."""
    assert "secret" not in repr(ClusterTokens(ranks="secret", ray="secret"))


def test_supervisor_does_not_import_inspect() -> None:
    """A supervisor starts without ``dataclasses``, ``inspect`` and ``typing``, which would be a third of its start."""
    code = "import sys, skyrl_modal.container.process_entrypoint; print(sorted(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(Path(skyrl_modal.__file__).parent.parent)}
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout
    unwanted = ("dataclasses", "inspect", "typing", "pathlib", "shutil", "socket")
    assert not [name for name in unwanted if f"'{name}'" in loaded]


def test_frozen_records_cannot_be_changed() -> None:
    """Assigning or deleting a field of a frozen record raises AttributeError, and the record keeps its values."""
    with pytest.raises(AttributeError, match="command"):
        JOB.command = "false"  # type: ignore[misc]  # the assignment that is refused
    with pytest.raises(AttributeError, match="command"):
        del JOB.command
    assert JOB.command == "true"
