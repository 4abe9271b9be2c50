"""A command's exit code, output, surroundings and result."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from skyrl_modal import CommandFailed, Launcher, MountSpec, RunState, RunTimeout, SpecError, VolumeSpec

Make = Callable[..., Launcher]


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
def test_the_exit_code_is_the_commands_own(launcher: Make, command: str | list[str], returncode: int) -> None:
    result = launcher().run(command, quiet=True, output=io.BytesIO())

    assert result.returncode == returncode
    assert result.state is (RunState.FAILED if returncode else RunState.SUCCEEDED)


def test_check_raises_with_the_code_and_the_end_of_the_log(launcher: Make) -> None:
    with pytest.raises(CommandFailed) as caught:
        launcher().run("seq 1000; echo the reason >&2; exit 9", check=True, quiet=True, output=io.BytesIO())

    error = pickle.loads(pickle.dumps(caught.value))
    assert error.returncode == 9
    assert error.log_tail.splitlines()[-2:] == ["1000", "the reason"]
    assert "the reason" in str(error)
    assert "exit code 9" in str(error)


def test_stdout_and_stderr_come_merged_in_their_order(launcher: Make) -> None:
    output = io.BytesIO()

    launcher().run("for i in 1 2 3; do echo out$i; echo err$i >&2; done", output=output, quiet=True)

    assert output.getvalue() == b"out1\nerr1\nout2\nerr2\nout3\nerr3\n"


def test_a_list_is_quoted_and_a_string_is_a_shell_line(launcher: Make) -> None:
    output = io.BytesIO()

    launcher().run(["printf", "%s|", "a b", "$HOME", "*"], output=output, quiet=True)
    launcher().run("printf '%s|' a b", output=output, quiet=True)

    assert output.getvalue() == b"a b|$HOME|*|a|b|"


def test_the_command_is_told_where_it_is(launcher: Make) -> None:
    output = io.BytesIO()

    result = launcher(env={"MINE": "yes"}).run(
        'echo "$SKYRL_REPO_ROOT $SKYRL_DATA $NUM_NODES $SKYRL_RUN_ID $SKYRL_ATTEMPT $PYTHONUNBUFFERED $MINE $PWD"',
        output=output,
        quiet=True,
    )

    assert output.getvalue().decode().split() == [
        "/root/SkyRL", "/root/data", "1", result.run_id, "1", "1", "yes", "/root/SkyRL",
    ]  # fmt: skip


def test_the_result_says_what_happened(launcher: Make, backend: str) -> None:
    before = datetime.now(UTC)

    result = launcher().run("exit 4", quiet=True)

    assert (result.backend, result.attempts, result.returncode) == (backend, 1, 4)
    assert result.started_at is not None
    assert before <= result.started_at <= datetime.now(UTC)
    assert result.duration is not None
    assert result.duration > 0


def test_the_record_on_the_volume_can_be_read_by_hand(launcher: Make, tmp_path: Path) -> None:
    made = launcher()
    result = made.run("echo kept; exit 5", quiet=True)

    folder = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}", tmp_path / "record")

    assert (folder / "output.log").read_bytes() == b"kept\n"
    assert json.loads((folder / "result.json").read_text())["returncode"] == 5
    assert json.loads((folder / "job.json").read_text())["command"] == "echo kept; exit 5"


def test_what_is_written_to_the_volume_is_there_in_the_next_run(launcher: Make) -> None:
    output, made = io.BytesIO(), launcher()

    made.run("echo remembered > /root/data/x", quiet=True)
    made.run("cat /root/data/x", output=output, quiet=True)

    assert output.getvalue() == b"remembered\n"


def test_two_volumes_at_two_paths(launcher: Make, volume: VolumeSpec) -> None:
    output = io.BytesIO()
    second = VolumeSpec(name=f"{volume.name}-2", mount_path="/root/second")
    both = launcher(volumes=[volume, second])

    both.run("echo 1 > /root/data/x; echo 2 > /root/second/x", quiet=True)
    both.run("cat /root/data/x /root/second/x", output=output, quiet=True)
    launcher(volumes=[second]).run("cat /root/second/x; ls /root/data", output=output, quiet=True)

    assert output.getvalue().startswith(b"1\n2\n2\n")
    assert b"No such file" in output.getvalue()


def test_a_read_only_volume_refuses_writes(launcher: Make, volume: VolumeSpec) -> None:
    launcher().run("echo old > /root/data/x", quiet=True)
    output = io.BytesIO()
    read_only = VolumeSpec(name=volume.name, read_only=True)

    result = launcher(volumes=[read_only]).run("cat /root/data/x; echo new > /root/data/x", output=output, quiet=True)

    assert result.returncode != 0
    assert output.getvalue().startswith(b"old\n")
    launcher().run("cat /root/data/x", output=output, quiet=True)
    assert output.getvalue().endswith(b"old\n")


def test_the_checkout_goes_without_what_git_ignores_and_is_never_written(launcher: Make, checkout: Path) -> None:
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


def test_edits_made_while_the_command_runs_do_not_reach_it(launcher: Make, checkout: Path) -> None:
    seen = bytearray()

    def edit(data: bytes) -> None:
        seen.extend(data)
        if data == b"go\n":
            (checkout / "train.py").write_text("edited")
            (checkout / "added.py").write_text("")
            (checkout / "skyrl" / "__init__.py").unlink()
            push.push(__file__, "/root/data/edited")

    push = launcher()
    command = (
        "echo go; until [ -e /root/data/edited ]; do sleep 0.05; done; cat train.py; ls; ls skyrl"
        if push.backend == "local"
        else "echo go; sleep 3; cat train.py; ls; ls skyrl"
    )
    push.run(command, output=edit, quiet=True)

    assert seen == b"go\nprint('training')\npyproject.toml\nskyrl\nskyrl-gym\ntrain.py\n__init__.py\n"


def test_a_folder_of_the_callers_own_goes_beside_the_checkout(launcher: Make, tmp_path: Path) -> None:
    folder, output = tmp_path / "driver", io.BytesIO()
    folder.mkdir()
    (folder / "main.py").write_text("print('driver runs')")
    made = launcher(mounts=[MountSpec(), MountSpec(local_path=folder, remote_path="/root/driver")])

    made.run("python3 /root/driver/main.py && ls train.py", output=output, quiet=True)

    assert output.getvalue() == b"driver runs\ntrain.py\n"


def test_workdir_and_the_older_layout(launcher: Make, checkout: Path) -> None:
    (checkout / "skyrl-train").mkdir()
    (checkout / "skyrl-train" / "train.sh").write_text("pwd; ls skyrl-gym")
    output = io.BytesIO()

    result = launcher(workdir="skyrl-train").run("bash train.sh", output=output, quiet=True)

    assert result.returncode == 0
    assert output.getvalue() == b"/root/SkyRL/skyrl-train\nskyrl_gym\n"
    assert not (checkout / "skyrl-train" / "skyrl-gym").exists()


@pytest.mark.slow
def test_random_bytes_arrive_whole(launcher: Make, tmp_path: Path) -> None:
    made, seen = launcher(), hashlib.sha256()

    result = made.run("head -c 10000000 /dev/urandom | tee /root/data/random", output=seen.update, quiet=True)

    sent = hashlib.sha256(made.pull("/root/data/random", tmp_path / "random").read_bytes())
    log = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}/output.log", tmp_path / "log").read_bytes()
    assert hashlib.sha256(log).digest() == sent.digest()
    if made.backend == "local":  # Modal's live view is text
        assert seen.digest() == sent.digest()


def test_secrets_are_given_to_the_command_and_shown_to_nobody(
    launcher: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("API_KEY", "hunter2-hunter2")
    output, made = io.BytesIO(), launcher(secrets=["API_KEY"])

    result = made.run(
        'test "$API_KEY" = hunter2-hunter2 && printf "<%s>" "$API_KEY"; printf hunter2-; sleep 0.2; printf hunter2',
        output=output,
    )

    folder = made.pull(f"/root/data/.skyrl_modal/runs/{result.run_id}", tmp_path / "record")
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert output.getvalue() == b"<********>********"
    # The command itself names the value in this test; that one mention is not the library's.
    told = capfd.readouterr().err + repr(made) + repr(result) + kept.decode()
    assert told.count("hunter2-hunter2") == told.count('test \\"$API_KEY\\" = hunter2-hunter2') + told.count(
        'test "$API_KEY" = hunter2-hunter2'
    )


def test_a_secret_may_come_from_a_dotenv_file(launcher: Make, checkout: Path) -> None:
    (checkout / ".env").write_text("FROM_FILE='quoted value'\n")
    output = io.BytesIO()

    launcher(secrets=["FROM_FILE"]).run('test "$FROM_FILE" = "quoted value" && echo right', output=output, quiet=True)

    assert output.getvalue() == b"right\n"


def test_a_secret_that_is_nowhere_is_named_before_anything_starts(launcher: Make) -> None:
    with pytest.raises(SpecError, match=r"NO_SUCH_KEY.*export it"):
        launcher(secrets=["NO_SUCH_KEY"]).run("true")


def test_a_timeout_ends_the_whole_tree_with_124(launcher: Make) -> None:
    made = launcher(timeout=1, grace=2)

    result = made.run("trap '' TERM INT; setsid sh -c \"trap '' TERM INT; sleep 600\" & sleep 600", quiet=True)

    assert (result.state, result.returncode) == (RunState.TIMED_OUT, 124)
    with pytest.raises(RunTimeout, match="timeout of"):
        result.check_returncode()


def test_a_command_may_save_at_its_timeout(launcher: Make) -> None:
    output = io.BytesIO()
    made = launcher(timeout=1, grace=20)

    result = made.run("trap 'echo saved > /root/data/ckpt; exit 0' TERM; sleep 600 & wait", quiet=True)
    made.run("cat /root/data/ckpt", output=output, quiet=True)

    assert result.returncode == 124  # never 0 for a run that did not reach its end
    assert output.getvalue() == b"saved\n"


def test_what_the_command_left_in_the_background_does_not_hold_up_the_end(launcher: Make) -> None:
    output = io.BytesIO()

    result = launcher(timeout=60).run("sleep 600 & echo done", output=output, quiet=True)

    assert result.returncode == 0
    assert output.getvalue() == b"done\n"


def test_standard_output_is_the_commands_alone(launcher: Make, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    launcher().run(r"printf 'a\rb\n\xff'")

    captured = capfdbinary.readouterr()
    if launcher().backend == "local":
        assert captured.out == b"a\rb\n\xff"
    else:
        assert captured.out == "a\rb\n\ufffd".encode()
    assert b"skyrl-modal | " in captured.err
    assert b"exit code 0" in captured.err


def test_quiet_leaves_out_our_own_lines(launcher: Make, capfd: pytest.CaptureFixture[str]) -> None:
    launcher().run("echo only this", quiet=True)

    assert capfd.readouterr() == ("only this\n", "")


def test_an_error_of_the_sink_reaches_the_caller_and_ends_the_run(launcher: Make) -> None:
    def full(_: bytes) -> None:
        raise OSError("the disk of the caller is full")

    with pytest.raises(OSError, match="disk of the caller"):
        launcher(grace=2).run("echo one; sleep 600", output=full, quiet=True)


def test_a_run_without_volumes_still_gives_a_result(launcher: Make) -> None:
    result = launcher(volumes=[]).run("exit 6", quiet=True)

    assert result.returncode == 6
    assert result.log_path
