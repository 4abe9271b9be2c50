"""Tests of the reader of checkpoint folders, with names and JSON as SkyRL writes them."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import pytest
from hypothesis import strategies as st

from skyrl_modal.formats import checkpoint_listing
from skyrl_modal.formats.checkpoint_listing import FolderListing
from skyrl_modal.formats.checkpoints import Checkpoint, CheckpointFolder, CheckpointLayout
from tests.support.checkpoint_folders import POINTER, cut, write_checkpoint, write_fsdp_model, write_state

PATH = "/root/data/ckpts/a"


def read(folder: Path, **facts: Any) -> CheckpointFolder:
    return CheckpointFolder(FolderListing(str(folder)), PATH, **facts)


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "global_step_20" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / "global_step_20" / name).write_bytes(data)

    return change


def cut_file(name: str, part: float = 0.5) -> Callable[[Path], None]:
    return lambda folder: cut(folder / "global_step_20" / name, part)


def replace_by_link(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "global_step_20" / name
        path.rename(folder / "elsewhere")
        path.symlink_to(folder / "elsewhere")

    return change


def replace_by_pipe(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "global_step_20" / name).unlink()
        os.mkfifo(folder / "global_step_20" / name)

    return change


def only_policy(folder: Path) -> None:
    """Killed while the states were written."""
    for name in ("data.pt", "trainer_state.pt"):
        (folder / "global_step_20" / name).unlink()


def all_of(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def no_megatron_shard(folder: Path) -> None:
    for path in (folder / "global_step_20" / "policy").glob("*.distcp"):
        path.unlink()


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder / "global_step_20")
    (folder / "global_step_20").mkdir()


def folder_is_a_file(folder: Path) -> None:
    shutil.rmtree(folder / "global_step_20")
    (folder / "global_step_20").write_text("20")


def folder_is_a_link(folder: Path) -> None:
    (folder / "global_step_20").rename(folder / "elsewhere")
    (folder / "global_step_20").symlink_to(folder / "elsewhere")


def policy_is_empty(folder: Path) -> None:
    shutil.rmtree(folder / "global_step_20" / "policy")
    (folder / "global_step_20" / "policy").mkdir()


def other_files(folder: Path) -> None:
    policy_is_empty(folder)
    (folder / "global_step_20" / "policy" / "weights.safetensors").write_bytes(b"1")


def ranks_of_node_one_missing(folder: Path) -> None:
    """The volume was not committed on another node."""
    for path in (folder / "global_step_20" / "policy").glob("*_rank_1.pt"):
        path.unlink()


def other_world_size(folder: Path) -> None:
    """A run with more GPUs was killed while it wrote the same step: its first files are beside the older ones."""
    write_state(folder / "global_step_20" / "policy" / "model_world_size_4_rank_0.pt")
    config = {"fsdp_strategy": "fsdp2", "world_size": 4}
    (folder / "global_step_20" / "policy" / "fsdp_config.json").write_text(json.dumps(config, indent=4))


class Case(NamedTuple):
    """A damage of ``global_step_20``, and all reasons that are expected."""

    name: str
    damage: Callable[[Path], None]
    missing: tuple[str, ...]
    kind: dict[str, Any] = {}  # noqa: RUF012  # not changed


CONFIG, METADATA = "policy/fsdp_config.json", "policy/metadata.json"
MODEL, OPTIM, EXTRA = (f"policy/{kind}_world_size_2_rank_1.pt" for kind in ("model", "optim", "extra_state"))
MEGATRON, ASYNC, CRITIC = {"is_megatron": True}, {"is_fully_async": True}, {"has_critic": True}
LINK = "a symbolic link, which is not followed"

CASES = [
    Case("killed while the model was written", all_of(only_policy, remove(CONFIG)),
         ("trainer_state.pt: missing", "data.pt: missing", f"{CONFIG}: missing")),
    Case("killed before the states", only_policy, ("trainer_state.pt: missing", "data.pt: missing")),
    Case("killed before trainer_state.pt", remove("trainer_state.pt"), ("trainer_state.pt: missing",)),
    Case("trainer_state.pt empty", write("trainer_state.pt", ""), ("trainer_state.pt: empty",)),
    Case("trainer_state.pt cut", cut_file("trainer_state.pt"), ("trainer_state.pt: cut off",)),
    Case("trainer_state.pt cut by one byte", cut_file("trainer_state.pt", 0.999), ("trainer_state.pt: cut off",)),
    Case("trainer_state.pt of zeros", write("trainer_state.pt", bytes(500)),
         ("trainer_state.pt: it begins with zeros: it was not written completely",)),
    Case("trainer_state.pt a link", replace_by_link("trainer_state.pt"), (f"trainer_state.pt: {LINK}",)),
    Case("trainer_state.pt a named pipe", replace_by_pipe("trainer_state.pt"),
         ("trainer_state.pt: not a regular file",)),
    Case("data.pt missing", remove("data.pt"), ("data.pt: missing",)),
    Case("data.pt empty", write("data.pt", ""), ("data.pt: empty",)),
    Case("data.pt cut", cut_file("data.pt"), ("data.pt: cut off",)),
    Case("no policy", remove("policy"), ("policy/: missing",)),
    Case("policy empty", policy_is_empty, ("policy/: empty",)),
    Case("policy a file", all_of(remove("policy"), write("policy", "x")),
         ("policy/: not a folder",)),
    Case("policy a link", replace_by_link("policy"), (f"policy/: {LINK}",)),
    Case("policy of another program", other_files,
         ("policy/: neither fsdp_config.json (FSDP) nor metadata.json (Megatron)",)),
    Case("folder empty", empty_folder, ("trainer_state.pt: missing", "data.pt: missing", "policy/: missing")),
    Case("folder a file", folder_is_a_file, ("not a folder",)),
    Case("folder a link", folder_is_a_link, (LINK,)),
    Case("a model shard missing", remove(MODEL), (f"{MODEL}: missing",)),
    Case("an optimizer shard missing", remove(OPTIM), (f"{OPTIM}: missing",)),
    Case("an extra state missing", remove(EXTRA), (f"{EXTRA}: missing",)),
    Case("a model shard empty", write(MODEL, b""), (f"{MODEL}: empty",)),
    Case("a model shard cut", cut_file(MODEL, 0.9), (f"{MODEL}: cut off",)),
    Case("an optimizer shard cut", cut_file(OPTIM, 0.3), (f"{OPTIM}: cut off",)),
    Case("node 1 not committed", ranks_of_node_one_missing,
         tuple(f"{name}: missing" for name in (MODEL, OPTIM, EXTRA))),
    Case("another world size", other_world_size,
         ("policy/optim_world_size_4_rank_0.pt: missing", "policy/extra_state_world_size_4_rank_0.pt: missing",
          *(f"policy/{kind}_world_size_4_rank_{rank}.pt: missing" for rank in (1, 2, 3)
            for kind in ("model", "optim", "extra_state")))),
    Case("fsdp_config.json missing", remove(CONFIG), (f"{CONFIG}: missing",)),
    Case("fsdp_config.json empty", write(CONFIG, ""), (f"{CONFIG}: no valid JSON",)),
    Case("fsdp_config.json cut", cut_file(CONFIG), (f"{CONFIG}: no valid JSON",)),
    Case("fsdp_config.json a list", write(CONFIG, "[2]"), (f"{CONFIG}: no JSON object",)),
    Case("fsdp_config.json without world_size", write(CONFIG, "{}"), (f"{CONFIG}: it has no valid world_size",)),
    Case("world_size a text", write(CONFIG, '{"world_size": "2"}'), (f"{CONFIG}: it has no valid world_size",)),
    Case("world_size NaN", write(CONFIG, '{"world_size": NaN}'), (f"{CONFIG}: it has no valid world_size",)),
    Case("world_size 0", write(CONFIG, '{"world_size": 0}'), (f"{CONFIG}: it has no valid world_size",)),
    Case("world_size huge", write(CONFIG, '{"world_size": 1' + "0" * 5000 + "}"), (f"{CONFIG}: no valid JSON",)),
    Case("fsdp_config.json deeply nested", write(CONFIG, "[" * 100_000), (f"{CONFIG}: no valid JSON",)),
    Case("fsdp_config.json huge", write(CONFIG, " " * (2 << 20)), (f"{CONFIG}: larger than 1 MiB",)),
    Case("fsdp_config.json a named pipe", replace_by_pipe(CONFIG), (f"{CONFIG}: not a regular file",)),
    Case("Megatron: killed while shards were written", remove(METADATA), (f"{METADATA}: missing",), MEGATRON),
    Case("Megatron: metadata.json cut", cut_file(METADATA), (f"{METADATA}: no valid JSON",), MEGATRON),
    Case("Megatron: metadata.json without a backend", write(METADATA, "{}"),
         (f"{METADATA}: it has no sharded_backend",), MEGATRON),
    Case("Megatron: common.pt cut", cut_file("policy/common.pt"), ("policy/common.pt: cut off",), MEGATRON),
    Case("Megatron: .metadata empty", write("policy/.metadata", ""), ("policy/.metadata: empty",), MEGATRON),
    Case("Megatron: a shard empty", write("policy/__1_0.distcp", b""), ("policy/__1_0.distcp: empty",), MEGATRON),
    Case("Megatron: no shard", no_megatron_shard,
         ("policy/*.distcp: missing",), MEGATRON),
    Case("fully async: killed after the pointer", remove("fully_async_state.pt"),
         ("fully_async_state.pt: missing",), ASYNC),
    Case("fully async: state cut", cut_file("fully_async_state.pt"), ("fully_async_state.pt: cut off",), ASYNC),
    Case("critic: a shard missing", remove(MODEL.replace("policy", "critic")),
         (f"{MODEL.replace('policy', 'critic')}: missing",), CRITIC),
    Case("critic missing", remove("critic"), ("critic/: missing",), CRITIC),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_damaged_checkpoint(case: Case, tmp_path: Path) -> None:
    """The damaged newest checkpoint is not chosen, the one before it is, and each reason is named."""
    for step in (10, 20):
        write_checkpoint(tmp_path, step, **case.kind)
    case.damage(tmp_path)
    facts = {"is_fully_async": case.kind == ASYNC, "has_critic": case.kind == CRITIC}

    folder = read(tmp_path, **facts)
    damaged, newest = folder.checkpoint(20), folder.newest_complete()

    assert damaged.missing == case.missing
    assert not damaged.complete
    assert newest is not None
    assert newest.step == 10
    assert newest.missing == ()


def test_enough_damages() -> None:
    """At least 40 damages are examined, each with a name of its own."""
    assert len({case.name for case in CASES}) >= 40


@pytest.mark.parametrize(
    ("content", "step", "problem"),
    [
        (b"20", 20, ""),
        (b" 20\n", 20, ""),
        (b"", None, "it is empty"),
        (b"2", 2, "global_step_2 does not exist"),
        (b"30", 30, "global_step_30 does not exist"),
        (b"-1", None, "it contains '-1', which is no step"),
        (b"20.0", None, "it contains '20.0', which is no step"),
        (b"\xff\x00", None, "it contains '\\ufffd\\x00', which is no step"),
        ("\u0663".encode(), None, "it contains '\\u0663', which is no step"),
        (b"1" * 30, None, f"it contains '{'1' * 30}', which is no step"),
        (b"1" * 100, None, "it is larger than a number"),
    ],
)
def test_pointer(content: bytes, step: int | None, problem: str, tmp_path: Path) -> None:
    """The pointer's number is returned, or why SkyRL could not continue from it."""
    write_checkpoint(tmp_path, 20)
    (tmp_path / POINTER).write_bytes(content)

    pointer = read(tmp_path).pointer()

    assert (pointer.step, pointer.problem, pointer.exists) == (step, problem, True)


def test_no_pointer_and_no_folder(tmp_path: Path) -> None:
    """Without a pointer file there is nothing to repair. A folder that does not exist has no checkpoints."""
    write_checkpoint(tmp_path, 20, has_pointer=False)

    assert not read(tmp_path).pointer().exists
    assert read(tmp_path / "absent").steps == ()
    assert read(tmp_path / "global_step_20" / "data.pt").checkpoints() == []


def test_facts_of_complete_checkpoints(tmp_path: Path) -> None:
    """Steps are sorted as numbers, and path, size, layout and numbers of GPUs are those of the files."""
    write_checkpoint(tmp_path, 100, world_size=4, has_critic=True)
    write_checkpoint(tmp_path, 9, is_megatron=True)
    size = sum(path.stat().st_size for path in (tmp_path / "global_step_9").rglob("*") if path.is_file())

    old, new = read(tmp_path).checkpoints()

    assert old == Checkpoint(
        step=9, path=f"{PATH}/global_step_9", complete=True, bytes=size, layout=CheckpointLayout.MEGATRON,
        is_loadable=True,
    )  # fmt: skip
    assert (new.step, new.complete, new.layout) == (100, True, CheckpointLayout.FSDP)
    assert new.world_sizes == {"policy": 4, "critic": 4}


def test_names_that_are_no_steps(tmp_path: Path) -> None:
    """Only names as SkyRL writes them are checkpoints; others with the prefix are returned as such."""
    write_checkpoint(tmp_path, 5)
    names = ["global_step_", "global_step_05", "global_step_5.old", "global_step_-1", "global_step_" + "9" * 40,
             "global_step_\u0665", "global_step_6\nglobal_step_7", "global_step_1_global_step_2"]  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "hf_exports").mkdir()

    folder = read(tmp_path)

    assert folder.steps == (5,)
    assert set(folder.misnamed) == set(names)


def test_fully_async_is_found_out(tmp_path: Path) -> None:
    """If one checkpoint has the state of fully asynchronous training, the others need it too."""
    write_checkpoint(tmp_path, 10, is_fully_async=True)
    write_checkpoint(tmp_path, 20)

    newest = read(tmp_path).newest_complete()

    assert newest is not None
    assert newest.step == 10


def test_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that this process may not read is incomplete, and no error."""
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    scan = os.scandir

    def refuse(path: str) -> object:
        if "global_step_20" in path:
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    folder = read(tmp_path)

    assert folder.checkpoint(20).missing == ("it cannot be listed: Permission denied",)
    assert (newest := folder.newest_complete()) is not None
    assert newest.step == 10


def test_older_checkpoints_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the newest checkpoints are examined until a complete one is found: a volume may have hundreds."""
    for step in range(10, 60, 10):
        write_checkpoint(tmp_path, step, world_size=1)
    (tmp_path / "global_step_50" / "trainer_state.pt").unlink()
    listed: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scan(path))[1])

    newest = read(tmp_path).newest_complete()

    assert newest is not None
    assert newest.step == 40
    assert not [path for path in listed if path.endswith(("_10", "_20"))]


def test_only_position_in_data_is_missing(tmp_path: Path) -> None:
    """SkyRL continues without data.pt. Such a checkpoint is used only if no other one is complete."""
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
        (tmp_path / f"global_step_{step}" / "data.pt").unlink()

    folder = read(tmp_path)

    assert folder.newest_complete() is None
    assert (loadable := folder.newest_loadable()) is not None
    assert loadable.step == 20

    write_checkpoint(tmp_path, 5)
    assert (loadable := read(tmp_path).newest_loadable()) is not None
    assert loadable.step == 5


def test_file_of_another_program_counts_as_complete(tmp_path: Path) -> None:
    """A state that is no zip file may be of a user's own trainer."""
    target = write_checkpoint(tmp_path, 5)
    (target / "trainer_state.pt").write_text("step 5")

    assert read(tmp_path).checkpoint(5).complete


def test_hostile_folders_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep trees, links to other folders, sockets and very many files end within the limits, without an error."""
    target = write_checkpoint(tmp_path, 5)
    os.symlink("/", target / "policy" / "root")
    os.symlink("..", target / "loop")
    deep = target
    for _ in range(200):
        deep /= "d"
        os.mkdir(deep)
    monkeypatch.chdir(target)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")

    assert read(tmp_path).checkpoint(5).complete

    monkeypatch.setattr(checkpoint_listing, "MAX_ENTRIES", 20)
    monkeypatch.setattr("skyrl_modal.formats.checkpoints.MAX_ENTRIES", 20)
    many = read(tmp_path).checkpoint(5)
    assert not many.complete
    assert "not examined completely" in many.missing[-1]


def test_many_ranks_are_counted(tmp_path: Path) -> None:
    """With many ranks, some of the missing files are named, and the others are counted."""
    target = write_checkpoint(tmp_path, 5)
    config = {"fsdp_strategy": "fsdp2", "world_size": 1024}
    (target / "policy" / "fsdp_config.json").write_text(json.dumps(config))

    missing = read(tmp_path).checkpoint(5).missing

    assert len(missing) == 13
    assert missing[-1] == "policy/: 3,060 further files of 3,072"


@hypothesis.given(
    content=st.binary(max_size=200), name=st.sampled_from(["fsdp_config.json", "model_world_size_1_rank_0.pt"])
)
def test_any_content_is_read(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No content of a file leads to an exception."""
    folder = tmp_path_factory.mktemp("any")
    target = write_checkpoint(folder, 5, world_size=1)
    write_fsdp_model(target / "policy", 1)
    (target / "policy" / name).write_bytes(content)
    (folder / POINTER).write_bytes(content)

    read(folder).checkpoints()
    read(folder).pointer()
