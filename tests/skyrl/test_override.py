"""Commands with other values of overrides, which are proved to reach the trainer."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from skyrl_modal import Launcher, SpecError

TRAINER = "python -m skyrl.train.entrypoints.main_base trainer.logger=console"


@pytest.fixture
def launcher(skyrl_checkout: Path) -> Launcher:
    """Return a launcher for Modal."""
    return Launcher(checkout=skyrl_checkout, backend="modal", gpu="H100:4")


def command_with(launcher: Launcher, command: str, **overrides: str) -> str:
    """Return the command with other values of keys below ``trainer``."""
    return launcher.plan(command).command_with({f"trainer.{key}": value for key, value in overrides.items()})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (TRAINER, f"{TRAINER} trainer.epochs=7"),
        (f"{TRAINER} trainer.epochs=2", f"{TRAINER} trainer.epochs=7"),
        (f"{TRAINER} trainer.epochs=2 2>&1 | tee log", f"{TRAINER} trainer.epochs=7 2>&1 | tee log"),
        (f"{TRAINER} 'trainer.epochs=2'", f"{TRAINER} 'trainer.epochs=2' trainer.epochs=7"),
        ("bash scripts/simple.sh", "bash scripts/simple.sh trainer.epochs=7"),
        ("bash scripts/simple.sh && echo done", "bash scripts/simple.sh trainer.epochs=7 && echo done"),
        ("bash scripts/simple.sh trainer.epochs=2", "bash scripts/simple.sh trainer.epochs=7"),
        (f"echo trainer.epochs=2; {TRAINER}", f"echo trainer.epochs=2; {TRAINER} trainer.epochs=7"),
    ],
)
def test_value_is_replaced_or_added(launcher: Launcher, before: str, after: str) -> None:
    """A value in the command's text is replaced, and another one is inserted where it arrives."""
    changed = command_with(launcher, before, epochs="7")

    assert changed == after
    assert [start.overrides["trainer.epochs"] for start in launcher.plan(changed).resolution.entrypoints] == ["7"]


def test_several_overrides_with_spaces(launcher: Launcher) -> None:
    """Several overrides are set together, and values are quoted."""
    changed = command_with(launcher, f"{TRAINER} trainer.epochs=2", epochs="3", run_name="a b; true")

    [start] = launcher.plan(changed).resolution.entrypoints
    assert (start.overrides["trainer.epochs"], start.overrides["trainer.run_name"]) == ("3", "a b; true")


@pytest.mark.parametrize(
    "command",
    [
        f"bash -c {shlex.quote(TRAINER)}",
        f"bash -c {shlex.quote(TRAINER + ' trainer.epochs=1')}",
        "python train.py",
        "true",
    ],
)
def test_value_without_proof_is_refused(launcher: Launcher, command: str) -> None:
    """Where a value would not arrive, or nothing receives it, no command is returned."""
    with pytest.raises(SpecError) as caught:
        command_with(launcher, command, epochs="7")

    assert caught.value.field == "overrides"


@pytest.mark.parametrize("key", ["", "a b", "a=b"])
def test_invalid_key(launcher: Launcher, key: str) -> None:
    """A key without text, or with spaces or an equals sign, is refused."""
    with pytest.raises(SpecError):
        launcher.plan(TRAINER).command_with({key: "1"})
