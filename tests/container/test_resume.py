"""Tests of the repair of checkpoint folders before an attempt, with a trainer that loads as SkyRL does."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from skyrl_modal.container.failures import StartError
from skyrl_modal.container.resume import resume_command
from skyrl_modal.formats.checkpoint_listing import FolderListing
from skyrl_modal.formats.checkpoints import CheckpointFolder
from skyrl_modal.protocol.codec import from_json, to_json
from skyrl_modal.protocol.job import Job
from skyrl_modal.protocol.resume import ResumeRecord, ResumeTarget, TrainerKind, insert_arguments
from skyrl_modal.protocol.state import FailureCause
from tests.support.checkpoint_folders import POINTER, cut, write_checkpoint
from tests.support.small_trainer import load

COMMAND = "bash train.sh 2>&1 | tee log"
POSITION = len("bash train.sh")


def target(folder: Path, **fields: Any) -> ResumeTarget:
    facts: dict[str, Any] = {"strategy": "fsdp", "world_sizes": {"policy": 2}, "position": POSITION, "program": "main"}
    return ResumeTarget(**{"kind": TrainerKind.TRAIN, "folder": str(folder), **facts, **fields})


def prepare(*targets: ResumeTarget, attempt: int = 2) -> tuple[dict[str, str], str]:
    """Return the arguments that the command receives, and the message."""
    done = resume_command(ResumeRecord(targets=targets), COMMAND, attempt)
    arguments = done.command.removeprefix(COMMAND[:POSITION]).removesuffix(COMMAND[POSITION:])
    return dict(word.split("=", 1) for word in shlex.split(arguments)), done.message or ""


def loaded_step(folder: Path, arguments: dict[str, str], mode: str) -> int:
    """Return the step that a trainer with these arguments continues after, as in SkyRL."""
    config = {
        "trainer.ckpt_path": str(folder),
        "trainer.resume_mode": mode,
        "trainer.ckpt_interval": "10",
        "trainer.placement.policy_num_gpus_per_node": "2",
    }
    return load(config | arguments)


def files_of(folder: Path) -> set[bytes]:
    """Return the contents of all files but the pointer."""
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != POINTER}


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (TrainerKind.TRAIN, {"trainer.resume_mode": "from_path", "trainer.resume_path": "{}"}),
        (TrainerKind.FULLY_ASYNC, {"trainer.resume_mode": "from_path", "trainer.resume_path": "{}"}),
        (TrainerKind.SFT, {"resume_from": "{}"}),
    ],
)
def test_arguments_of_each_entrypoint(kind: TrainerKind, arguments: dict[str, str], tmp_path: Path) -> None:
    """The arguments name the newest complete checkpoint with the keys of the entrypoint."""
    folder = tmp_path / "it's a folder"
    for step in (10, 20):
        write_checkpoint(folder, step, is_fully_async=True)
    (folder / "global_step_20" / "fully_async_state.pt").unlink()
    expected = 10 if kind is TrainerKind.FULLY_ASYNC else 20

    found, message = prepare(target(folder, kind=kind))

    path = f"{folder}/global_step_{expected}"
    assert found == {key: value.format(path) for key, value in arguments.items()}
    assert message.startswith(f"resume: main continues from {path}")


def test_nothing_to_continue_from(tmp_path: Path) -> None:
    """Without a folder, or with an empty one, the command is unchanged. A first attempt reports nothing."""
    for folder in (tmp_path / "absent", tmp_path):
        assert prepare(target(folder), attempt=1) == ({}, "")
        assert prepare(target(folder)) == ({}, f"resume: no complete checkpoint in {folder}; main starts as it is")
    assert os.listdir(tmp_path) == []


def test_intact_folder_is_not_changed(tmp_path: Path) -> None:
    """If the newest checkpoint is complete and the pointer names it, nothing is written."""
    write_checkpoint(tmp_path, 10)
    os.chmod(tmp_path, 0o500)
    before = [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))]

    _, message = prepare(target(tmp_path))

    os.chmod(tmp_path, 0o700)
    assert message == f"resume: main continues from {tmp_path}/global_step_10"
    assert [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))] == before


def test_complete_checkpoint_far_ahead_of_the_pointer(tmp_path: Path) -> None:
    """It is the newest one, and SkyRL's check of the pointer does not end the run."""
    write_checkpoint(tmp_path, 100)
    write_checkpoint(tmp_path, 20)
    with pytest.raises(ValueError, match="Inconsistent checkpoint folder"):
        loaded_step(tmp_path, {}, "latest")

    arguments, message = prepare(target(tmp_path))

    assert loaded_step(tmp_path, arguments, "null") == loaded_step(tmp_path, {}, "latest") == 100
    assert f"wrote 100 to {POINTER} (it named step 20)" in message


def test_nothing_is_deleted_and_names_are_not_reused(tmp_path: Path) -> None:
    """Incomplete folders are moved aside, also if a folder with the same name was moved there before."""
    write_checkpoint(tmp_path, 10)
    for content in ("first", "second"):
        (tmp_path / "global_step_20").mkdir()
        (tmp_path / "global_step_20" / "own").write_text(content)
        prepare(target(tmp_path))

    aside = tmp_path / "incomplete"
    assert {path.name: (path / "own").read_text() for path in aside.iterdir()} == {
        "global_step_20.2": "first",
        "global_step_20.2-2": "second",
    }


def test_older_incomplete_checkpoints_stay(tmp_path: Path) -> None:
    """What is older than the chosen checkpoint is not in the way."""
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / "global_step_10" / "data.pt").unlink()

    prepare(target(tmp_path))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["global_step_10", "global_step_20", POINTER]


def test_no_checkpoint_can_be_loaded(tmp_path: Path) -> None:
    """The run begins at step 0, also if the command itself continues from the pointer, and everything is kept."""
    write_checkpoint(tmp_path, 10)
    cut(tmp_path / "global_step_10" / "trainer_state.pt")
    before = files_of(tmp_path)

    arguments, message = prepare(target(tmp_path))

    assert arguments == {}
    assert loaded_step(tmp_path, arguments, "latest") == 0
    assert files_of(tmp_path) == before | {b"10"}
    assert "no complete checkpoint" in message


def test_files_of_another_program_are_not_touched(tmp_path: Path) -> None:
    """A layout that is not known may be complete: nothing is moved, and the command is unchanged."""
    write_checkpoint(tmp_path, 10)
    shutil.rmtree(tmp_path / "global_step_10" / "policy")
    (tmp_path / "global_step_10" / "policy").mkdir()
    (tmp_path / "global_step_10" / "policy" / "weights.safetensors").write_text("1")
    before = sorted(tmp_path.rglob("*"))

    arguments, message = prepare(target(tmp_path))

    assert (arguments, sorted(tmp_path.rglob("*"))) == ({}, before)
    assert "files of another program" in message


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"world_sizes": {"policy": 8}}, "saved by 2 GPUs with FSDP"),
        ({"world_sizes": {"policy": 2, "critic": 4}}, "its critic was saved by 2 GPUs"),
        ({"strategy": "megatron"}, "saved with trainer.strategy=fsdp, and the command uses megatron"),
    ],
)
def test_checkpoint_of_other_gpus_is_refused(fields: dict[str, Any], cause: str, tmp_path: Path) -> None:
    """A checkpoint that FSDP could not load ends the run before Ray starts. Nothing is moved."""
    write_checkpoint(tmp_path, 10, has_critic=True)
    (tmp_path / "global_step_20").mkdir()

    with pytest.raises(StartError, match=cause) as caught:
        prepare(target(tmp_path, **fields))

    assert caught.value.failure.cause is FailureCause.CHECKPOINT_MISMATCH
    assert (tmp_path / "global_step_20").exists()


def test_megatron_uses_any_number_of_gpus(tmp_path: Path) -> None:
    """Megatron distributes a checkpoint again. Without a known number of GPUs, FSDP is not refused either."""
    write_checkpoint(tmp_path / "a", 10, is_megatron=True)
    write_checkpoint(tmp_path / "b", 10)

    megatron, _ = prepare(target(tmp_path / "a", strategy="megatron", world_sizes={"policy": 16}))
    unknown, _ = prepare(target(tmp_path / "b", strategy="", world_sizes={}))

    assert megatron["trainer.resume_mode"] == unknown["trainer.resume_mode"] == "from_path"


def test_trainers_with_the_same_arguments_use_their_pointers(tmp_path: Path) -> None:
    """A script that passes its arguments on to two trainers receives what is right for both of them."""
    first, second = tmp_path / "a", tmp_path / "b"
    write_checkpoint(first, 10)
    (first / POINTER).write_text("")
    (first / "global_step_7.old").mkdir()
    (first / "global_step_30").mkdir()

    arguments, _ = prepare(target(first, is_shared=True), target(second, is_shared=True))

    assert arguments == {"trainer.resume_mode": "latest"}
    assert loaded_step(first, arguments, "null") == 10
    assert loaded_step(second, arguments, "null") == 0


def test_trainers_of_one_command_have_their_own_arguments(tmp_path: Path) -> None:
    """Each receives its checkpoint where its own arguments are."""
    write_checkpoint(tmp_path / "a", 10)
    write_checkpoint(tmp_path / "b", 20)
    command = "bash a.sh && bash b.sh"
    targets = (target(tmp_path / "a", position=9), target(tmp_path / "b", position=len(command), kind=TrainerKind.SFT))

    done = resume_command(ResumeRecord(targets=targets), command, 1)

    path = f"{tmp_path}/a/global_step_10"
    expected = f"bash a.sh trainer.resume_mode=from_path trainer.resume_path={path} && bash b.sh"
    assert done.command == f"{expected} resume_from={tmp_path}/b/global_step_20"


def test_trainer_that_receives_no_arguments(tmp_path: Path) -> None:
    """If a script does not pass its arguments on, and continues from the pointer itself, the pointer is repaired."""
    write_checkpoint(tmp_path, 10)
    (tmp_path / POINTER).write_text("")

    arguments, _ = prepare(target(tmp_path, position=None))

    assert arguments == {}
    assert loaded_step(tmp_path, arguments, "latest") == 10


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("/etc/hostname"), os.mkfifo])
def test_pointer_that_is_no_file(make: Callable[[Path], object], tmp_path: Path) -> None:
    """A folder, link or named pipe in its place is replaced, and not followed."""
    write_checkpoint(tmp_path, 10, has_pointer=False)
    make(tmp_path / POINTER)

    prepare(target(tmp_path))

    assert (tmp_path / POINTER).read_text() == "10"
    assert not (tmp_path / POINTER).is_symlink()


def test_folder_that_cannot_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk or a read-only volume the trainer still continues: its arguments name the checkpoint."""
    write_checkpoint(tmp_path, 10)
    (tmp_path / "global_step_20").mkdir()
    (tmp_path / POINTER).write_text("")

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, refuse)
    arguments, message = prepare(target(tmp_path))

    assert loaded_step(tmp_path, arguments, "null") == 10
    assert "could not be moved aside: Read-only file system" in message
    assert f"{POINTER} could not be repaired" in message


def test_record_is_read_by_other_versions() -> None:
    """A job without the record, and a record with an unknown trainer, can be read."""
    facts = {"run_id": "r1", "command": COMMAND, "workdir": "/", "run_folder": "/x", "created_at": "2026-01-01"}
    job = Job(**facts, resume=ResumeRecord(targets=(target(Path("/data/a")),)))

    assert from_json(Job, to_json(job)) == job
    assert from_json(Job, json.dumps(facts)).resume is None
    other = from_json(Job, to_json(job).replace('"train"', '"later"'))
    assert other.resume is not None
    assert other.resume.targets[0].kind is TrainerKind.UNKNOWN


def test_positions_are_those_of_characters() -> None:
    """Arguments are inserted also after characters that need several bytes, and at several positions."""
    command = "NAME='ä ö' bash a.sh; bash b.sh"

    changed = insert_arguments(command, {20: [("a", "x y")], len(command): [("b", "$HOME")]})

    assert changed == "NAME='ä ö' bash a.sh 'a=x y'; bash b.sh 'b=$HOME'"


# -- any damage ------------------------------------------------------------------------------------------------------

FILES = (
    "trainer_state.pt", "data.pt", "policy/fsdp_config.json", "policy/model_world_size_2_rank_0.pt",
    "policy/optim_world_size_2_rank_1.pt", "policy/extra_state_world_size_2_rank_1.pt",
)  # fmt: skip
DAMAGES = ("remove", "cut", "empty")
DAMAGE = st.tuples(st.integers(1, 3), st.sampled_from(FILES), st.sampled_from(DAMAGES))
POINTERS = st.one_of(
    st.none(), st.integers(0, 6).map(lambda step: str(10 * step)), st.text("0123456789-. x", max_size=4)
)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    damages=st.lists(DAMAGE, max_size=6),
    pointer=POINTERS,
    junk=st.lists(st.sampled_from(["global_step_50", "global_step_x", "global_step_5.old", "hf"]), unique=True),
    is_shared=st.booleans(),
)
def test_any_damage(
    damages: list[tuple[int, str, str]],
    pointer: str | None,
    junk: list[str],
    is_shared: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever is damaged, a trainer with resume_mode=null loads the newest undamaged checkpoint, or begins at 0."""
    folder = tmp_path_factory.mktemp("damaged")
    for number in range(1, 4):
        write_checkpoint(folder, 10 * number)
    for number, name, damage in damages:
        path = folder / f"global_step_{10 * number}" / name
        if damage == "remove":
            path.unlink(missing_ok=True)
        elif path.exists():
            cut(path, 0 if damage == "empty" else 0.6)
    (folder / POINTER).unlink()
    if pointer is not None:
        (folder / POINTER).write_text(pointer)
    for name in junk:
        (folder / name).mkdir()
    damaged = {number for number, _, _ in damages}
    intact = [10 * number for number in range(1, 4) if number not in damaged]
    only_data = [
        10 * number for number in damaged if {name for other, name, _ in damages if other == number} == {"data.pt"}
    ]
    expected = max(intact, default=max(only_data, default=0))
    before = files_of(folder)

    arguments, _ = prepare(target(folder, is_shared=is_shared))

    assert arguments_of_step(arguments) in (expected, None if is_shared or not expected else expected)
    if expected in intact or not expected:
        assert loaded_step(folder, arguments, "null") == expected
        if is_shared or not {"global_step_x", "global_step_5.old"} & set(junk):
            assert loaded_step(folder, {}, "latest") == expected
    assert before <= files_of(folder)
    again = CheckpointFolder(FolderListing(str(folder)), str(folder)).newest_loadable()
    assert (0 if again is None else again.step) == expected


def arguments_of_step(arguments: dict[str, str]) -> int | None:
    path = arguments.get("trainer.resume_path")
    return None if path is None else int(path.rpartition("_")[2])
