"""``skyrl-modal why``, and what the launcher prints about a failure."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]
#: Version 1 of Linux's control groups, where this machine lets this user create them.
_MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def skyrl(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that calls the command line in a checkout, with an empty index and without an account."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SKYRL_MODAL_BACKEND", "local")
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))

    def call(*arguments: str, group: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "skyrl_modal", *arguments]
        if group is not None:
            command = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *command]
        return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False, timeout=100)

    return call


@pytest.fixture
def small_group() -> Iterator[Path]:
    """Yield a control group with 300 MiB of memory."""
    group = _MEMORY_GROUPS / f"skyrl-modal-{uuid.uuid4().hex}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be created: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
        yield group
    finally:
        group.rmdir()


def test_cause_is_printed(skyrl: Command) -> None:
    """After a failure, cause and remedy are printed, and ``why`` shows them again, as text and as JSON."""
    done = skyrl("run", "--no-ray", "echo 'OSError: [Errno 28] No space left on device'; exit 3")
    assert done.returncode == 3
    assert "cause: A disk is full." in done.stderr
    assert "output.log:1: OSError" in skyrl("why", "latest").stdout
    assert json.loads(skyrl("why", "--json", "latest").stdout)["code"] == "disk-full"


def test_unknown_cause(skyrl: Command) -> None:
    """Nothing is printed about a failure without a known cause, and ``why`` shows the last lines."""
    done = skyrl("run", "--no-ray", "echo the score is too low; exit 1")
    assert "cause:" not in done.stderr
    assert "the score is too low" in skyrl("why", "latest").stdout


def test_success(skyrl: Command) -> None:
    """A run that succeeded has no cause."""
    skyrl("run", "--no-ray", "true")
    done = skyrl("why", "--json", "latest")
    assert (done.returncode, json.loads(done.stdout)) == (0, None)


def test_memory_of_a_control_group(skyrl: Command, small_group: Path) -> None:
    """A process that the kernel has killed for its memory is explained by the counters of the control group."""
    program = "data = [bytearray(1 << 20) for _ in range(2000)]"
    done = skyrl("run", "--no-ray", "--", sys.executable, "-c", program, group=small_group)
    assert done.returncode == 137
    assert "cause: The machine is out of memory" in done.stderr
    assert "machine/memory.jsonl" in done.stderr
