"""The hook records what Python processes of a run log, and changes nothing else in them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.formats.hook_process import HOOK, hook_environment, make_packages, recorded_rows, run_python
from tests.support.pythons import find_python

#: Further Pythons of this machine, for the programs of runs that have another one.
PYTHONS = [path for minor in ("3.9", "3.10", "3.12", "3.13") if (path := find_python(minor)) is not None]


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Return a folder with the packages that log metrics."""
    return make_packages(tmp_path / "packages")


def test_tracker_is_recorded_exactly(tmp_path: Path, packages: Path) -> None:
    """Every step has its exact values. What is no number is left out, and the function returns what it returned."""
    code = """
from skyrl.train.utils.tracking import Tracking
tracker = Tracking()
for step in range(1, 4):
    data = {"a": step / 3, "b": 10**-30 * step, "n": step, "t": "text", "l": [1], "flag": True, "nan": float("nan")}
    assert tracker.log(data, step=step, commit=True) == 7
assert tracker.log({"inf": float("-inf")}, 4) == 1
"""
    done = run_python(code, hook_environment(tmp_path, packages))

    rows = recorded_rows(tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row.get("a") for row in rows] == [1 / 3, 2 / 3, 1.0, None]
    assert [row.get("b") for row in rows] == [1e-30, 2e-30, 10**-30 * 3, None]
    assert [(row.get("n"), row.get("flag")) for row in rows[:3]] == [(1, 1), (2, 1), (3, 1)]
    assert all(row["nan"] != row["nan"] for row in rows[:3])
    assert rows[3] == {"step": 4, "inf": float("-inf")}
    assert not any("t" in row or "l" in row for row in rows)


def test_nothing_is_recorded_twice(tmp_path: Path, packages: Path) -> None:
    """A tracker that passes its values to wandb is recorded once; wandb and tensorboard alone are recorded too."""
    code = """
from skyrl_train.utils.tracking import Tracking
from wandb.sdk.wandb_run import Run
from torch.utils.tensorboard.writer import SummaryWriter
from tensorboardX.writer import SummaryWriter as Other
run = Run()
Tracking(run).log({"loss": 1.0}, 1, commit=True)
run.log({"alone": 2.0}, step=2)
run.log({"first": 3.0}, commit=False)
run.log({"second": 4.0})
run.log({"third": 5.0})
SummaryWriter().add_scalar("tag", 6.0, 9)
SummaryWriter().add_scalars("main", {"x": 7.0, "y": 8.0}, global_step=9)
writer = Other()
writer.add_scalar("count", 9.0)
writer.add_scalar("count", 10.0)
"""
    assert run_python(code, hook_environment(tmp_path, packages)).stderr == ""

    assert recorded_rows(tmp_path) == [
        {"step": 0, "count": 9.0},
        {"step": 1, "loss": 1.0, "count": 10.0},
        {"step": 2, "alone": 2.0},
        {"step": 3, "first": 3.0, "second": 4.0},
        {"step": 4, "third": 5.0},
        {"step": 9, "tag": 6.0, "main/x": 7.0, "main/y": 8.0},
    ]
    text = "".join(path.read_text() for path in (tmp_path / "metrics").iterdir())
    assert text.count("loss") == 1


def test_numbers_of_numpy(tmp_path: Path, packages: Path) -> None:
    """Scalars of numpy are recorded by their exact value, arrays are left out, and no warning is printed."""
    code = """
import numpy as np
from skyrl.train.utils.tracking import Tracking
Tracking().log({"f32": np.float32(0.1), "i": np.int64(7), "one": np.array([0.5]), "many": np.zeros(3)}, np.int64(2))
"""
    site = Path(sys.modules["pytest"].__file__ or "").parents[1]
    done = run_python(code, hook_environment(tmp_path, packages, site), "-W", "error")

    assert done.stderr == ""
    assert recorded_rows(tmp_path) == [{"step": 2, "f32": 0.10000000149011612, "i": 7, "one": 0.5}]


INVISIBLE = """
import importlib, importlib.util, inspect, pickle, sys
import {module} as module
spec, loader = module.__spec__, module.__loader__
print(type(loader).__name__, sorted(vars(loader)), spec.loader is loader, spec.origin == module.__file__)
found = importlib.util.find_spec("{module}")
print(found is spec, type(found.loader).__name__)
log = module.Tracking.log
print(log.__name__, log.__qualname__, log.__module__, log.__doc__, inspect.signature(log))
print(pickle.loads(pickle.dumps(log)) is log, pickle.loads(pickle.dumps(module.Tracking)) is module.Tracking)
try:
    module.Tracking().log()
except TypeError as error:
    print(error)
importlib.reload(module)
print(module.Tracking().log({{"x": 1}}, 5), [path for path in sys.path if "hook" in path])
try:
    import sitecustomize
except ImportError as error:
    print(type(error).__name__, error, error.name)
print("sitecustomize" in sys.modules)
"""


@pytest.mark.parametrize("python", [sys.executable, *PYTHONS])
def test_program_sees_no_difference(tmp_path: Path, packages: Path, python: str) -> None:
    """Specs, loaders, signatures, pickling, errors, reloading and sys.path are as without the hook."""
    code = INVISIBLE.format(module="skyrl.train.utils.tracking")
    plain = hook_environment(None, packages)
    plain["PYTHONPATH"] = str(packages)

    with_hook = run_python(code, hook_environment(tmp_path, packages), python=python)
    without = run_python(code, plain, python=python)

    assert (with_hook.stdout, with_hook.stderr) == (without.stdout, without.stderr)
    assert without.returncode == 0
    assert recorded_rows(tmp_path) == [{"step": 5, "x": 1}]


@pytest.mark.parametrize("with_variables", [True, False])
def test_hidden_sitecustomize_is_loaded(tmp_path: Path, with_variables: bool) -> None:
    """Another sitecustomize is executed once, is the module of that name, and its error is reported as usual."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("print('executed')\nMINE = 1\n")
    (folder / "usercustomize.py").write_text("print('user')\n")
    env = hook_environment(tmp_path if with_variables else None, folder)
    code = "import sitecustomize as s; print(s.MINE, s.__file__)"

    plain = {**env, "PYTHONPATH": str(folder)}
    base = getattr(sys, "_base_executable", sys.executable)  # a virtual environment loads no usercustomize

    assert run_python(code, env).stdout == f"executed\n1 {folder / 'sitecustomize.py'}\n"
    assert run_python(code, env, python=base).stdout == run_python(code, plain, python=base).stdout

    (folder / "sitecustomize.py").write_text("raise ValueError('mine')\n")
    done, expected = run_python("print('continues')", env), run_python("print('continues')", plain)
    assert (done.stdout, done.stderr) == (expected.stdout, expected.stderr)
    assert "ValueError: mine" in done.stderr


@pytest.mark.parametrize("options", [["-S"], ["-I"], ["-E"], ["-s"], ["-P"], ["-W", "error"], ["-X", "dev"]])
def test_options_of_python(tmp_path: Path, packages: Path, options: list[str]) -> None:
    """With any option a program runs as without the hook, and prints nothing else."""
    env = hook_environment(tmp_path, packages)
    code = "import sys; print(sys.path, sorted(name for name in sys.modules if 'customize' in name))"

    done = run_python(code, env, *options)
    expected = run_python(code, {**env, "PYTHONPATH": str(packages)}, *options)

    def without_hook(text: str) -> str:
        return text.replace(f"'{HOOK}', ", "")

    assert (without_hook(done.stdout), done.stderr) == (expected.stdout, "")


def test_without_the_variables_nothing_is_recorded(tmp_path: Path, packages: Path) -> None:
    """A process that has only PYTHONPATH loads the modules as they are."""
    code = """
import sys
from skyrl.train.utils.tracking import Tracking
Tracking().log({"a": 1}, 1)
print(hasattr(Tracking.log, "__wrapped__"), [finder for finder in sys.meta_path if "Hook" in type(finder).__name__])
"""
    assert run_python(code, hook_environment(None, packages)).stdout == "False []\n"


LOG = """
from skyrl.train.utils.tracking import Tracking
print(Tracking().log({"a": 1.0}, 1), Tracking().log({"a": 2.0}, 2))
"""


PLANTED = [
    ("instrumentation.py", "", "raise RuntimeError('planted')"),
    ("instrumentation.py", "", "this is no Python"),
    ("../metrics_writer.py", "", "raise RuntimeError('planted')"),
    ("../metrics_writer.py", "", "this is no Python"),
    ("../metrics_writer.py", "def numbers_of(data: Mapping[object, object]) -> dict[str, float]:", "    1 / 0"),
    ("sitecustomize.py", "def _install() -> None:\n    try:", "        raise RuntimeError('planted')"),
    ("sitecustomize.py", 'def _instrument(name: str, module: "ModuleType") -> None:\n    try:', "        1 / 0"),
]


@pytest.mark.parametrize(("file", "after", "error"), PLANTED)
def test_planted_error_changes_nothing(tmp_path: Path, packages: Path, file: str, after: str, error: str) -> None:
    """A hook that fails records nothing, and the program does not notice it."""
    copy = tmp_path / "skyrl_modal" / "formats"
    shutil.copytree(HOOK.parent, copy)
    path = copy / "hook" / file
    text = path.read_text()
    assert after in text
    path.write_text(text.replace(after, f"{after}\n{error}\n") if after else f"{text}\n{error}\n")

    done = run_python(LOG, hook_environment(tmp_path, packages, hook=copy / "hook"))

    assert (done.stdout, done.stderr, done.returncode) == ("1 1\n", "", 0)
    assert not (tmp_path / "metrics").exists()


def test_folder_that_cannot_be_written(tmp_path: Path, packages: Path) -> None:
    """A run's folder that does not exist, that is a file, or that is removed does not affect the program."""
    (tmp_path / "file").touch()
    for folder in ("missing", "file"):
        done = run_python(LOG, hook_environment(tmp_path / folder, packages))
        assert (done.stdout, done.stderr) == ("1 1\n", "")

    code = LOG + "import os, shutil; shutil.rmtree(os.environ['SKYRL_MODAL_RUN_FOLDER'])\n" + LOG
    (tmp_path / "run").mkdir()
    done = run_python(code, hook_environment(tmp_path / "run", packages))
    assert (done.stdout, done.stderr) == ("1 1\n1 1\n", "")


def test_full_disk(tmp_path: Path, packages: Path) -> None:
    """A file that may not grow loses rows: the program continues, and the rows before are intact."""
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from skyrl.train.utils.tracking import Tracking
tracker = Tracking()
for step in range(1000):
    tracker.log({"a": step / 7}, step)
print("done")
"""
    done = run_python(code, hook_environment(tmp_path, packages))

    assert (done.stdout, done.stderr) == ("done\n", "")
    rows = recorded_rows(tmp_path)
    assert 10 < len(rows) < 100
    assert rows == [{"step": step, "a": step / 7} for step in range(len(rows))]


def test_disk_that_is_full_for_a_time(tmp_path: Path, packages: Path) -> None:
    """When there is space again, rows with other keys are recorded, and none is confused with the row that was cut."""
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from skyrl.train.utils.tracking import Tracking
writer = sys.modules["_skyrl_modal_instrumentation"]._writer
writer.RETRY_INTERVAL = 0
tracker = Tracking()
tracker.log({"a": 1.0}, 1)
for limit in (200, 260, 300):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    tracker.log({f"lost{limit}": 2.0}, 2)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
tracker.log({"b": 3.0}, 3)
tracker.log({"a": 4.0}, 4)
"""
    done = run_python(code, hook_environment(tmp_path, packages))

    assert (done.stdout, done.stderr) == ("", "")
    rows = [row for row in recorded_rows(tmp_path) if row["step"] != 2]
    assert rows == [{"step": 1, "a": 1.0}, {"step": 3, "b": 3.0}, {"step": 4, "a": 4.0}]


def test_forks_and_threads(tmp_path: Path, packages: Path) -> None:
    """Forks have files of their own, threads share one, and no line is mixed with another."""
    code = """
import os, threading
from skyrl.train.utils.tracking import Tracking
tracker = Tracking()
def work(first):
    for step in range(first, first + 200):
        tracker.log({f"key{i}": step / (i + 1) for i in range(50)}, step)
work(0)
children = []
for number in (1, 2):
    pid = os.fork()
    if pid == 0:
        work(1000 * number)
        os._exit(0)
    children.append(pid)
threads = [threading.Thread(target=work, args=(10_000 * (number + 1),)) for number in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for pid in children: os.waitpid(pid, 0)
"""
    assert run_python(code, hook_environment(tmp_path, packages)).stderr == ""

    starts = [0, 1000, 2000, 10_000, 20_000, 30_000, 40_000]
    rows = recorded_rows(tmp_path)
    assert [row["step"] for row in rows] == [step for start in starts for step in range(start, start + 200)]
    assert all(row[f"key{i}"] == row["step"] / (i + 1) for row in rows for i in range(50))
    assert len(list((tmp_path / "metrics").iterdir())) == 3


def test_program_that_closes_all_descriptors(tmp_path: Path, packages: Path) -> None:
    """A program that closes the descriptor of the hook and opens a file of its own finds nothing else in it."""
    own = tmp_path / "own.txt"
    code = f"""
import os
from skyrl.train.utils.tracking import Tracking
tracker = Tracking()
tracker.log({{"a": 1.0}}, 1)
os.closerange(3, 100)
files = [open({str(own)!r}, "w") for _ in range(20)]
tracker.log({{"a": 2.0}}, 2)
os.closerange(3, 100)
tracker.log({{"a": 3.0}}, 3)
"""
    run_python(code, hook_environment(tmp_path, packages))

    assert own.read_text() == ""
    assert [row["a"] for row in recorded_rows(tmp_path)] == [1.0, 2.0, 3.0]


def test_killed_process_leaves_whole_rows(tmp_path: Path, packages: Path) -> None:
    """After a kill at any moment, the rows up to it are there, and at most the last line is cut."""
    code = """
from skyrl.train.utils.tracking import Tracking
tracker, step = Tracking(), 0
while True:
    tracker.log({f"key{i}": step / 3 for i in range(200)}, step)
    print(step, flush=True)
    step += 1
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=hook_environment(tmp_path, packages), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 300:
            break
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split()
    process.wait()

    logged = int(rest[-1]) + 1 if rest and rest[-1].isdigit() else 301
    rows = recorded_rows(tmp_path)
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert abs(len(rows) - logged) <= 1


def test_interpreter_shutdown(tmp_path: Path, packages: Path) -> None:
    """Objects that log when they are deleted at the end of the interpreter cause no message."""
    code = """
from skyrl.train.utils.tracking import Tracking
class Late:
    def __del__(self):
        Tracking_().log({"late": 1.0}, 1)
Tracking_ = Tracking
keep = Late(); keep.self = keep
"""
    done = run_python(code, hook_environment(tmp_path, packages))
    plain = run_python(code, {**hook_environment(tmp_path, packages), "PYTHONPATH": str(packages)})

    assert (done.stderr, done.returncode) == (plain.stderr, plain.returncode)


def test_child_processes(tmp_path: Path, packages: Path) -> None:
    """Child processes of Python programs load the hook too: by subprocess, and by multiprocessing with spawn."""
    (tmp_path / "child.py").write_text(
        "from skyrl.train.utils.tracking import Tracking\n"
        "def work(step):\n    Tracking().log({'a': float(step)}, step)\n"
        "if __name__ == '__main__':\n"
        "    import multiprocessing, subprocess, sys\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work, args=(1,))\n"
        "    process.start(); process.join(); work(2)\n"
        "    subprocess.run([sys.executable, '-c', 'import child; child.work(3)'], cwd=sys.path[0], check=True)\n"
    )
    subprocess.run(
        [sys.executable, str(tmp_path / "child.py")], env=hook_environment(tmp_path, packages), check=True, timeout=60
    )

    assert recorded_rows(tmp_path) == [{"step": step, "a": float(step)} for step in (1, 2, 3)]


@pytest.mark.parametrize("python", [sys.executable, *PYTHONS])
def test_log_metrics_without_the_package(tmp_path: Path, python: str) -> None:
    """A Python in which this package is not installed can call log_metrics in a run."""
    code = """
import sys
from skyrl_modal import log_metrics
log_metrics({"reward": 0.25}, step=7)
print(sorted(name for name in sys.modules if name.startswith("attr")))
"""
    done = run_python(code, hook_environment(tmp_path), "-s", python=python)

    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert recorded_rows(tmp_path) == [{"step": 7, "reward": 0.25}]


def test_attempt_of_a_ray_that_continues(tmp_path: Path, packages: Path) -> None:
    """Ray continues in the next attempt: its processes take the number from the run's folder."""
    (tmp_path / "state.json").write_text('{"state": "running", "attempt": 3}')

    run_python(LOG, hook_environment(tmp_path, packages, SKYRL_ATTEMPT="1"))

    [path] = (tmp_path / "metrics").iterdir()
    assert path.name.startswith("3-1764243123500-0-")
    assert oct(os.stat(path).st_mode & 0o777) == "0o600"
