"""Overrides that remove findings, and the commands with them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from skyrl_modal import Launcher, Plan, Run, VolumeSpec
from skyrl_modal.skyrl.resolution import resolver
from skyrl_modal.skyrl.resolution.insertion import insertion_points

PATHS = "trainer.ckpt_path=/root/data/ckpts/sums trainer.resume_mode=latest trainer.export_path=/root/data/exports/sums"
TRAINER = "python -m skyrl.train.entrypoints.main_base trainer.logger=console"


@pytest.fixture
def launcher(skyrl_checkout: Path) -> Launcher:
    """Return a launcher for Modal with all keys that the scripts need."""
    return Launcher(
        checkout=skyrl_checkout,
        backend="modal",
        gpu="H100:4",
        env={"WANDB_API_KEY": "x" * 40},
        volumes=[VolumeSpec()],
    )


def codes(plan: Plan) -> set[str]:
    """Return the codes of the findings that a fix may remove."""
    return {finding.code for finding in plan.findings if finding.overrides and finding.severity != "note"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bash scripts/simple.sh", ""),
        ("cd scripts && bash simple.sh", ""),
        ("WANDB_MODE=offline bash scripts/nested.sh", ""),
        ("(cd scripts; bash simple.sh", ") 2>&1 | tee /tmp/log"),
        ("bash scripts/simple.sh 2>&1", " | tee /tmp/log # a comment"),
        ("bash scripts/simple.sh trainer.run_name='a b'", " && echo done"),
        ("bash scripts/simple.sh", "\necho done\n"),
    ],
)
def test_overrides_are_inserted_where_they_arrive(launcher: Launcher, before: str, after: str) -> None:
    """The overrides follow the arguments of the script, whatever the rest of the command is, and remove findings."""
    plan = launcher.plan(before + after)
    fixed = launcher.plan(plan.fixed_command)

    assert codes(plan) == {"ckpt-path", "resume-off", "export-path"}
    assert plan.fixed_command == f"{before} {PATHS}{after}"
    assert " ".join(plan.overrides) == PATHS
    assert codes(fixed) == set()
    assert fixed.fixed_command == plan.fixed_command
    assert plan.fix.findings == ()


@pytest.mark.parametrize(
    "script",
    [
        f"{TRAINER}\n",
        f'python prepare.py "$@"\n{TRAINER} "$@"\n',
        f'curl "$@"\n{TRAINER} "$@"\n',
        f'{TRAINER} trainer.epochs="${{1:-4}}"\n',
        f'{TRAINER} trainer.run_name="$1" "$@"\n',
        f'{TRAINER} trainer.ckpt_path=/root/data/ckpts/a "$@"\n{TRAINER} trainer.ckpt_path=/tmp/b "$@"\n',
        f'[ $# = 0 ] || exit 3\n{TRAINER} "$@"\n',
    ],
)
def test_overrides_without_proof_are_reported(launcher: Launcher, script: str) -> None:
    """Where an override does not arrive, or arrives elsewhere too, it is not used, and a finding reports it."""
    plan = launcher.plan(f"bash -c {shlex.quote(script)} own")
    fix = plan.fix

    assert "ckpt-path" in codes(plan)
    assert [pair for pair in fix.overrides if pair.startswith("trainer.ckpt_path")] == []
    assert {finding.code for finding in fix.findings} == {"fix-without-effect"}
    assert any("trainer.ckpt_path=/root/data/ckpts/" in finding.message for finding in fix.findings)


def test_trainers_in_one_command_have_their_own(launcher: Launcher) -> None:
    """Each part of a command receives the overrides of its own trainer."""
    first, second = (f"{TRAINER} trainer.ckpt_path=/tmp/{name} trainer.export_path=/root/data/x" for name in "ab")

    plan = launcher.plan(f"{first} && {second}")

    folder = "trainer.ckpt_path=/root/data/ckpts"
    assert plan.fixed_command == f"{first} {folder}/a && {second} {folder}/b"


def test_keys_of_sft_have_no_prefix(launcher: Launcher) -> None:
    """An override has the entrypoint's own key."""
    command = "python -m skyrl.train.main_sft ckpt_path=/tmp/a ckpt_interval=10"

    plan = launcher.plan(command)

    assert plan.fixed_command == f"{command} ckpt_path=/root/data/ckpts/a resume_from=latest"
    assert codes(launcher.plan(plan.fixed_command)) == set()


def test_folder_with_spaces_is_quoted(launcher: Launcher) -> None:
    """A value that the shell would split is quoted."""
    command = f"{TRAINER} 'trainer.ckpt_path=/tmp/it'\\''s $HOME' trainer.export_path=/root/data/x"

    [start] = launcher.plan(launcher.plan(command).fixed_command).resolution.starts

    assert start.overrides["trainer.ckpt_path"] == "/root/data/ckpts/it's $HOME"


def test_notes_are_not_fixed(launcher: Launcher) -> None:
    """A note's override, such as the one that deletes old checkpoints, is not used."""
    command = f"{TRAINER} trainer.ckpt_path=/root/data/ckpts/a trainer.export_path=/root/data/x"
    plan = launcher.plan(command)

    assert "ckpts-all-kept" in {finding.code for finding in plan.findings}
    assert (plan.overrides, plan.fixed_command) == ((), command)


def test_text_alone_is_no_proof(launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a sandbox it is not known what a script passes on, so the command of a script is unchanged."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # without recordings of other tests
    monkeypatch.setattr(resolver, "find_bubblewrap", list)

    plan = launcher.plan("bash scripts/simple.sh")

    assert plan.fixed_command == "bash scripts/simple.sh"


def test_run_executes_the_fixed_command(skyrl_checkout: Path) -> None:
    """With `fix`, runs execute and record the fixed command."""
    launcher = Launcher(checkout=skyrl_checkout, backend="local", ray=None, gpu=None)
    command = f"{TRAINER} trainer.ckpt_path=/tmp/fix || true"
    fixed = launcher.plan(command).fixed_command

    results = [
        launcher.run(command, fix=True, quiet=True, output=lambda data: None),
        launcher.submit(command, fix=True).wait(),
        *launcher.map([command], fix=True, quiet=True),
    ]

    assert fixed == f"{TRAINER} trainer.ckpt_path=/tmp/fix trainer.ckpt_path=/root/data/ckpts/fix || true"
    assert [result.returncode for result in results] == [0, 0, 0]
    assert [Run.attach(result.run_id).job.command for result in results] == [fixed] * 3


@pytest.mark.parametrize(
    ("command", "ends"),
    [
        ("a b; c", ["a b; c", "a b"]),
        ("a 'x;y' \"z&\" $(d; e) `f; g`", ["a 'x;y' \"z&\" $(d; e) `f; g`"]),
        ("a > log 2>&1 & b", ["a > log 2>&1 & b", "a > log 2>&1"]),
        ("a # b; c", ["a"]),
        ("cd x && a \\\n  b\n", ["cd x && a \\\n  b"]),
        ("", []),
    ],
)
def test_ends_of_the_parts_of_a_command(command: str, ends: list[str]) -> None:
    """Arguments can follow each part of a command, except for those that start no program."""
    assert [command[:point] for point in insertion_points(command)] == ends


def test_default_folders_are_not_shared(launcher: Launcher) -> None:
    """Commands with SkyRL's default folders and other arguments receive folders of their own, the same each time."""

    def folder(epochs: int) -> str:
        overrides = launcher.plan(f"{TRAINER} trainer.epochs={epochs}").overrides
        [text] = [item for item in overrides if item.startswith("trainer.ckpt_path=")]
        return text

    assert folder(1).startswith("trainer.ckpt_path=/root/data/ckpts/main_base-")
    assert folder(1) == folder(1) != folder(2)
