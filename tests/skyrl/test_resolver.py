"""Tests of what a command starts."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from skyrl_modal import Launcher, MountSpec
from skyrl_modal.skyrl.resolution import resolver
from skyrl_modal.skyrl.resolution.records import EndOfExecution, EntrypointKind, Resolution, ResolutionMethod
from tests.skyrl.checkout_files import SCRIPTS, create_checkout

EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((SCRIPTS / "expected.toml").read_text())


def resolve(checkout: Path, command: str, **fields: Any) -> Resolution:
    """Return what a command starts on Modal with 4 GPUs."""
    return Launcher(checkout=checkout, **{"backend": "modal", "gpu": "H100:4", **fields}).plan(command).resolution


@pytest.mark.parametrize("script", EXPECTED)
def test_script_starts(skyrl_checkout: Path, script: str) -> None:
    """Each form of a script is resolved to the programs that it starts, with their arguments."""
    resolution = resolve(skyrl_checkout, f"bash scripts/{script}")

    expected = EXPECTED[script]
    starts = [start for start in resolution.starts if start.kind is not EntrypointKind.OTHER or start.overrides]
    assert [(start.kind, start.program) for start in starts] == [tuple(start[:2]) for start in expected["starts"]]
    for start, (_, _, overrides) in zip(starts, expected["starts"], strict=True):
        assert overrides.items() <= start.overrides.items()
    assert expected.get("unresolved", "") in resolution.unresolved
    assert bool(resolution.unresolved) == ("unresolved" in expected)


def test_all_scripts_are_expected() -> None:
    """Each script of the folder has an expectation, except for those that others read."""
    assert {path.name for path in SCRIPTS.glob("*.sh")} - {"common.inc.sh"} == set(EXPECTED)


def test_environment_of_a_start_is_known(skyrl_checkout: Path) -> None:
    """The variables that a script sets for a program are those of its start; the others are left out."""
    [start] = resolve(skyrl_checkout, "bash scripts/nested.sh").starts
    [sourced] = resolve(skyrl_checkout, "bash scripts/sourced.sh").starts

    assert start.env == {"WANDB_RUN_GROUP": "outer", "NUM_GPUS": "2"}  # the script changes an exported variable
    assert sourced.env == {"HF_HOME": "/root/data/hf"}
    assert start.extras == ("fsdp",)


def test_long_argument_arrives_whole(skyrl_checkout: Path) -> None:
    """An argument that is longer than a write of the shell is not cut."""
    [start] = resolve(skyrl_checkout, "bash scripts/quoting.sh").starts

    assert start.overrides["trainer.project_name"] == "a" * 6000


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("python -m skyrl.train.main_sft seed=1 seed=2", {"seed": "2"}),
        ("uv run --extra fsdp -m skyrl.train.main_sft 'seed=1 2'", {"seed": "1 2"}),
    ],
)
def test_simple_command_is_not_executed(skyrl_checkout: Path, command: str, overrides: dict[str, str]) -> None:
    """A command without anything that only a shell evaluates is split, and the last of equal keys wins."""
    resolution = resolve(skyrl_checkout, command)

    assert [(start.kind, start.overrides) for start in resolution.starts] == [(EntrypointKind.SFT, overrides)]
    assert resolution.recording.method is ResolutionMethod.LITERAL


@pytest.mark.parametrize("command", ["echo trainer.logger=wandb", "python train.py $HOME", "bash scripts/absent.sh"])
def test_other_commands_are_not_executed(skyrl_checkout: Path, command: str) -> None:
    """A command that starts no entrypoint of SkyRL is not executed."""
    resolution = resolve(skyrl_checkout, command)

    assert resolution.entrypoints == ()
    assert resolution.recording.end is EndOfExecution.NOT_EXECUTED


def test_number_of_gpus_is_the_requested_one(skyrl_checkout: Path) -> None:
    """NUM_GPUS and nvidia-smi of the sandbox have the requested number."""
    [start] = resolve(skyrl_checkout, "bash scripts/defaults.sh", gpu="L4:2").starts
    [counted] = resolve(skyrl_checkout, "bash scripts/counts_gpus.sh", gpu="L4:2").starts

    assert start.overrides["trainer.placement.policy_num_gpus_per_node"] == "2"
    assert counted.overrides["placement.num_gpus_per_node"] == "2"
    assert counted.env["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_ignored_files_are_not_visible(skyrl_checkout: Path) -> None:
    """A file that git ignores does not exist in the sandbox, and a selected one can be read."""
    command = 'python -m skyrl.train.main_sft seed="$(cat .env 2>/dev/null | wc -c)" num_workers="$(cat .gitignore)"'

    [hidden] = resolve(skyrl_checkout, command).starts
    [included] = resolve(skyrl_checkout, command, mounts=[MountSpec(include=["/.env"])]).starts

    assert hidden.overrides == {"seed": "0", "num_workers": ".env\n.venv/"}
    assert included.overrides["seed"] != "0"


def test_variables_of_this_machine(skyrl_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local command has the caller's variables that it mentions, with placeholders for those that may be secrets."""
    monkeypatch.setenv("STEP_WISE", "true")
    monkeypatch.setenv("MY_TOKEN", "PRIVATE")

    [start] = resolve(skyrl_checkout, "bash scripts/defaults.sh", backend="local").starts
    [token] = resolve(skyrl_checkout, 'python -m skyrl.train.main_sft seed="$MY_TOKEN"', backend="local").starts
    [modal] = resolve(skyrl_checkout, "bash scripts/defaults.sh").starts

    assert start.overrides["generator.step_wise_trajectories"] == "true"
    assert token.overrides == {"seed": "secret"}
    assert "generator.step_wise_trajectories" not in modal.overrides


def test_without_bubblewrap_the_text_is_parsed(skyrl_checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a bubblewrap that works, the text is read: known values are kept, and unknown ones are marked."""
    monkeypatch.setattr(resolver, "find_bubblewrap", lambda: [shutil.which("false")])
    monkeypatch.setenv("XDG_CACHE_HOME", os.path.join(os.environ["XDG_CACHE_HOME"], "parsed"))

    resolution = resolve(skyrl_checkout, "bash scripts/simple.sh")
    [start] = resolution.starts
    [defaults] = resolve(skyrl_checkout, "bash scripts/defaults.sh").starts

    assert resolution.recording.method is ResolutionMethod.PARSED
    assert start.overrides["trainer.ckpt_path"] == "/root/ckpts/sums"
    assert not start.is_partial
    assert defaults.is_partial
    assert defaults.overrides["trainer.placement.policy_num_gpus_per_node"] == "4"


def test_changed_script_is_resolved_again(tmp_path: Path) -> None:
    """The recording of a script is used again until the script changes, also within the same size and time."""
    checkout = create_checkout(tmp_path / "SkyRL")
    script = checkout / "scripts/backslash.sh"
    status = script.stat()

    first = resolve(checkout, "bash scripts/backslash.sh")
    script.write_text(script.read_text().replace("ckpt_interval=-1", "ckpt_interval=27"[:16]))
    os.utime(script, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = resolve(checkout, "bash scripts/backslash.sh")

    assert first.starts[0].overrides == {"trainer.ckpt_interval": "-1"}
    assert second.starts[0].overrides == {"trainer.ckpt_interval": "27"}
    assert script.stat().st_size == status.st_size


def test_main_of_the_checkout_is_read(skyrl_checkout: Path) -> None:
    """What a main builds on is found by its imports; one that cannot be parsed is another program."""

    def start(module: str) -> Any:
        return resolve(skyrl_checkout, f"python -m examples.own.{module}").starts[0]

    assert start("main_own").kind is EntrypointKind.TRAIN
    assert start("main_own").has_own_config
    assert start("main_async").kind is EntrypointKind.FULLY_ASYNC
    assert not start("main_async").has_own_config
    assert not start("main_benchmark").writes_results
    assert start("main_engines").has_own_placement
    assert start("main_loop").kind is EntrypointKind.TRAIN
    assert start("main_loop").has_own_placement
    assert not start("main_loop").has_own_config
    assert start("print_config").kind is EntrypointKind.OTHER
    assert start("broken").kind is EntrypointKind.OTHER
    assert start("sums_dataset").kind is EntrypointKind.DATASET
