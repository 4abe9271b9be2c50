"""Tests of one run: exit code, output, environment, files and result."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from datetime import UTC, datetime
from pathlib import Path

import pytest

from skyrl_modal import CommandFailed, MountSpec, RunState, RunTimeout, SpecError, VolumeSpec
from skyrl_modal.protocol.state import FailureCause
from tests.conftest import MakeLauncher


@pytest.mark.parametrize(
    ("command", "returncode"),
    [
        ("true", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("no-such-program-anywhere", 127),
        (["sh", "-c", "exit 3"], 3),
    ],
)
def test_exit_code(launcher: MakeLauncher, command: str | list[str], returncode: int) -> None:
    """The exit code is the command's own; 128+N for signal N."""
    result = launcher().run(command, quiet=True, output=io.BytesIO())

    assert result.returncode == returncode
    assert result.state is (RunState.FAILED if returncode else RunState.SUCCEEDED)
    assert result.cause is (FailureCause.COMMAND_FAILED if returncode else None)


def test_check_raises_with_code_and_log_tail(launcher: MakeLauncher) -> None:
    """With check=True, a failure raises CommandFailed with the exit code and the end of the output."""
    with pytest.raises(CommandFailed) as caught:
        launcher().run("seq 1000; echo the reason >&2; exit 9", check=True, quiet=True, output=io.BytesIO())

    error = pickle.loads(pickle.dumps(caught.value))
    assert error.returncode == 9
    assert error.log_tail.splitlines()[-2:] == ["1000", "the reason"]
    assert "the reason" in str(error)
    assert "exit code 9" in str(error)


def test_stdout_and_stderr_are_merged_in_order(launcher: MakeLauncher) -> None:
    """Standard output and standard error are one stream, in the order of writing."""
    output = io.BytesIO()

    launcher().run("for i in 1 2 3; do echo out$i; echo err$i >&2; done", output=output, quiet=True)

    assert output.getvalue() == b"out1\nerr1\nout2\nerr2\nout3\nerr3\n"


def test_list_is_quoted_and_string_is_a_shell_line(launcher: MakeLauncher) -> None:
    """The arguments of a list reach the program unchanged. A shell expands a string."""
    output = io.BytesIO()

    launcher().run(["printf", "%s|", "a b", "$HOME", "*"], output=output, quiet=True)
    launcher().run("printf '%s|' a b", output=output, quiet=True)

    assert output.getvalue() == b"a b|$HOME|*|a|b|"


def test_variables_of_the_command(launcher: MakeLauncher) -> None:
    """The command has the documented variables and those of ``env``."""
    output = io.BytesIO()

    result = launcher(env={"MINE": "yes"}).run(
        'echo "$SKYRL_REPO_ROOT $SKYRL_DATA $NUM_NODES $SKYRL_RUN_ID $SKYRL_ATTEMPT $PYTHONUNBUFFERED $MINE $PWD"',
        output=output,
        quiet=True,
    )

    assert output.getvalue().decode().split() == [
        "/root/SkyRL", "/root/data", "1", result.run_id, "1", "1", "yes", "/root/SkyRL",
    ]  # fmt: skip


def test_facts_of_the_result(launcher: MakeLauncher, backend: str) -> None:
    """The result contains backend, number of attempts, start and duration."""
    before = datetime.now(UTC)

    result = launcher().run("exit 4", quiet=True)

    assert (result.backend, result.attempts, result.returncode) == (backend, 1, 4)
    assert before <= result.started_at <= datetime.now(UTC)
    assert result.duration > 0


def test_records_on_the_volume(launcher: MakeLauncher, tmp_path: Path) -> None:
    """Output, result and job are files in the run's folder on the volume."""
    made = launcher(name="first", tags=["a"])
    result = made.run("echo kept; exit 5", quiet=True)

    folder = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}", tmp_path / "record")

    job = json.loads((folder / "job.json").read_text())
    assert (folder / "output.log").read_bytes() == b"kept\n"
    assert json.loads((folder / "result.json").read_text())["returncode"] == 5
    assert (job["command"], job["name"], job["tags"]) == ("echo kept; exit 5", "first", ["a"])


def test_records_contain_no_local_path(launcher: MakeLauncher, tmp_path: Path) -> None:
    """A shared volume contains no path of the caller's machine in any of the run's records."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_text("")
    made = launcher(mounts=[MountSpec(), MountSpec(local_path=other, remote_path="/root/other")])
    result = made.run("true", quiet=True)

    folder = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}", tmp_path / "record")

    records = {path.name: path.read_text() for path in folder.glob("*.json")}
    assert {"job.json", "result.json"} <= set(records)
    assert [name for name, text in records.items() if str(tmp_path) in text] == []


def test_next_run_reads_what_was_written(launcher: MakeLauncher) -> None:
    """A file that one run writes to the volume exists in the next run."""
    output, made = io.BytesIO(), launcher()

    made.run("echo remembered > /root/data/x", quiet=True)
    made.run("cat /root/data/x", output=output, quiet=True)

    assert output.getvalue() == b"remembered\n"


def test_two_volumes(launcher: MakeLauncher, volume: VolumeSpec) -> None:
    """Each volume is at its own path, and only the declared ones are mounted."""
    output = io.BytesIO()
    second = VolumeSpec(name=f"{volume.name}-2", mount_path="/root/second")
    both = launcher(volumes=[volume, second])

    both.run("echo 1 > /root/data/x; echo 2 > /root/second/x", quiet=True)
    both.run("cat /root/data/x /root/second/x", output=output, quiet=True)
    launcher(volumes=[second]).run("cat /root/second/x; ls /root/data", output=output, quiet=True)

    assert output.getvalue().startswith(b"1\n2\n2\n")
    assert b"No such file" in output.getvalue()


def test_read_only_volume_refuses_writes(launcher: MakeLauncher, volume: VolumeSpec) -> None:
    """A command can read a read-only volume, and cannot change it."""
    launcher().run("echo old > /root/data/x", quiet=True)
    output = io.BytesIO()
    read_only = VolumeSpec(name=volume.name, read_only=True)

    result = launcher(volumes=[read_only]).run("cat /root/data/x; echo new > /root/data/x", output=output, quiet=True)

    assert result.returncode != 0
    assert output.getvalue().startswith(b"old\n")
    launcher().run("cat /root/data/x", output=output, quiet=True)
    assert output.getvalue().endswith(b"old\n")


def test_checkout_is_copied_and_never_written(launcher: MakeLauncher, checkout: Path) -> None:
    """The command has the files that git does not ignore. Its changes do not reach the checkout."""

    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(checkout.rglob("*")) if path.is_file()}

    before, output = state(), io.BytesIO()

    launcher().run(
        "ls -A; echo changed > train.py; rm -r skyrl; touch new; cat train.py; ls -A", output=output, quiet=True
    )

    first, second = output.getvalue().decode().split("changed\n")
    assert first.split() == [".gitignore", "pyproject.toml", "skyrl", "skyrl-gym", "train.py"]
    assert second.split() == [".gitignore", "new", "pyproject.toml", "skyrl-gym", "train.py"]
    assert state() == before


def test_edits_do_not_affect_a_run(launcher: MakeLauncher, checkout: Path) -> None:
    """Files that are edited, added or removed while the command runs do not change in the container."""
    seen = bytearray()

    def edit(data: bytes) -> None:
        seen.extend(data)
        if data == b"go\n":
            (checkout / "train.py").write_text("edited")
            (checkout / "added.py").write_text("")
            (checkout / "skyrl" / "__init__.py").unlink()
            made.push(__file__, "/root/data/edited")

    made = launcher()
    # On Modal, files that others write to a volume are visible after a reload only.
    wait = "until [ -e /root/data/edited ]; do sleep 0.05; done" if made.backend == "local" else "sleep 3"
    made.run(f"echo go; {wait}; cat train.py; ls; ls skyrl", output=edit, quiet=True)

    assert seen == b"go\nprint('training')\npyproject.toml\nskyrl\nskyrl-gym\ntrain.py\n__init__.py\n"


def test_further_mount(launcher: MakeLauncher, tmp_path: Path) -> None:
    """A folder outside of the checkout is mounted at its own path."""
    folder, output = tmp_path / "driver", io.BytesIO()
    folder.mkdir()
    (folder / "main.py").write_text("print('driver runs')")
    made = launcher(mounts=[MountSpec(), MountSpec(local_path=folder, remote_path="/root/driver")])

    made.run("python3 /root/driver/main.py && ls train.py", output=output, quiet=True)

    assert output.getvalue() == b"driver runs\ntrain.py\n"


def test_workdir_in_the_older_layout(launcher: MakeLauncher, checkout: Path) -> None:
    """With the workdir skyrl-train, the container has a copy of skyrl-gym in it, and the checkout has none."""
    (checkout / "skyrl-train").mkdir()
    (checkout / "skyrl-train" / "train.sh").write_text("pwd; ls skyrl-gym")
    output = io.BytesIO()

    result = launcher(workdir="skyrl-train").run("bash train.sh", output=output, quiet=True)

    assert result.returncode == 0
    assert output.getvalue() == b"/root/SkyRL/skyrl-train\nskyrl_gym\n"
    assert not (checkout / "skyrl-train" / "skyrl-gym").exists()


@pytest.mark.slow
def test_random_bytes_are_complete(launcher: MakeLauncher, tmp_path: Path) -> None:
    """Ten megabytes of random bytes are in output.log, and on the local backend's stream, unchanged."""
    made, seen = launcher(), hashlib.sha256()

    result = made.run("head -c 10000000 /dev/urandom | tee /root/data/random", output=seen.update, quiet=True)

    sent = hashlib.sha256(made.pull("/root/data/random", tmp_path / "random").read_bytes())
    log = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}/output.log", tmp_path / "log").read_bytes()
    assert hashlib.sha256(log).digest() == sent.digest()
    if made.backend == "local":  # Modal's live view is text
        assert seen.digest() == sent.digest()


def test_secrets_are_masked(
    launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command has the value of a secret. Output, records, messages and repr do not contain it."""
    monkeypatch.setenv("API_KEY", "hunter2-hunter2")
    output, made = io.BytesIO(), launcher(secrets=["API_KEY"])

    result = made.run(
        'test "${#API_KEY}" = 15 && printf "<%s>" "$API_KEY"; printf "${API_KEY%2}"; sleep 0.2; printf 2',
        output=output,
    )

    folder = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}", tmp_path / "record")
    records = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert output.getvalue() == b"<********>********"
    assert "hunter2-hunter2" not in capfd.readouterr().err + repr(made) + repr(result) + records.decode()


def test_secret_from_a_dotenv_file(launcher: MakeLauncher, checkout: Path) -> None:
    """A secret is read from the .env file of the checkout."""
    (checkout / ".env").write_text("FROM_FILE='quoted value'\n")
    output = io.BytesIO()

    launcher(secrets=["FROM_FILE"]).run('test "${#FROM_FILE}" = 12 && echo right', output=output, quiet=True)

    assert output.getvalue() == b"right\n"


def test_value_in_the_command_is_refused(launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a secret in the command raises SpecError before anything starts; the error does not contain it."""
    monkeypatch.setenv("API_KEY", "hunter2-hunter2")

    with pytest.raises(SpecError) as caught:
        launcher(secrets=["API_KEY"]).run("API_KEY=hunter2-hunter2 true")

    assert caught.value.field == "command"
    assert "hunter2" not in str(caught.value)


def test_missing_secret_is_refused(launcher: MakeLauncher) -> None:
    """A secret without a value raises SpecError before anything starts."""
    with pytest.raises(SpecError, match=r"NO_SUCH_KEY.*export it"):
        launcher(secrets=["NO_SUCH_KEY"]).run("true")


def test_timeout_ends_the_process_tree(launcher: MakeLauncher) -> None:
    """At its time limit, a run with processes that ignore signals ends with 124."""
    made = launcher(timeout=1, grace=2)

    result = made.run("trap '' TERM INT; setsid sh -c \"trap '' TERM INT; sleep 600\" & sleep 600", quiet=True)

    assert (result.state, result.returncode) == (RunState.TIMED_OUT, 124)
    assert result.cause is FailureCause.ATTEMPT_TIMEOUT
    with pytest.raises(RunTimeout) as caught:
        result.check_returncode()
    assert caught.value.seconds == 1


def test_command_may_save_at_its_timeout(launcher: MakeLauncher) -> None:
    """A command that saves and exits with 0 in its grace period has timed out all the same."""
    output = io.BytesIO()
    made = launcher(timeout=1, grace=20)

    result = made.run("trap 'echo saved > /root/data/ckpt; exit 0' TERM; sleep 600 & wait", quiet=True)
    made.run("cat /root/data/ckpt", output=output, quiet=True)

    assert result.returncode == 124
    assert output.getvalue() == b"saved\n"


def test_background_process_does_not_delay_the_end(launcher: MakeLauncher) -> None:
    """The run ends with its command, and a process that the command started in the background is ended."""
    output = io.BytesIO()

    result = launcher(timeout=60).run("sleep 600 & echo done", output=output, quiet=True)

    assert result.returncode == 0
    assert output.getvalue() == b"done\n"


def test_standard_output_is_the_command_only(launcher: MakeLauncher, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Standard output contains the command's output, and standard error the launcher's messages."""
    launcher().run(r"printf 'a\rb\n\xff'")

    captured = capfdbinary.readouterr()
    if launcher().backend == "local":
        assert captured.out == b"a\rb\n\xff"
    else:  # Modal's live view is text
        assert captured.out == "a\rb\n\ufffd".encode()
    assert b"skyrl-modal | " in captured.err
    assert b"exit code 0" in captured.err


def test_quiet_suppresses_messages(launcher: MakeLauncher, capfd: pytest.CaptureFixture[str]) -> None:
    """With quiet=True, the launcher prints no message."""
    launcher().run("echo only this", quiet=True)

    assert capfd.readouterr() == ("only this\n", "")


def test_error_of_the_sink_is_raised(launcher: MakeLauncher) -> None:
    """An exception of the sink stops the run and is raised afterwards."""

    def full(_: bytes) -> None:
        raise OSError("the disk of the caller is full")

    with pytest.raises(OSError, match="disk of the caller"):
        launcher(grace=2).run("echo one; sleep 600", output=full, quiet=True)


def test_run_without_volumes(launcher: MakeLauncher) -> None:
    """A run without volumes returns a result."""
    result = launcher(volumes=[]).run("exit 6", quiet=True)

    assert result.returncode == 6
    assert result.log_path
