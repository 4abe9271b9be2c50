"""The processes of a local run, by what they are."""

from __future__ import annotations

import os
from pathlib import Path

from skyrl_modal.container.process_tree import _process_table
from tests.support.kill_table import Target
from tests.support.processes import marked_processes

#: Parts of the command lines of Ray's processes (Ray 2.48 to 2.60). Ray renames some of them when they have started.
_RAY_COMMANDS = (
    ("/gcs_server ", Target.GCS_SERVER),
    ("/raylet/raylet ", Target.RAYLET),
    ("ray::DashboardAgent", Target.DASHBOARD_AGENT),
    ("/dashboard/agent.py ", Target.DASHBOARD_AGENT),
    ("ray::RuntimeEnvAgent", Target.RUNTIME_ENV_AGENT),
    ("/runtime_env/agent/main.py ", Target.RUNTIME_ENV_AGENT),
    ("/_private/log_monitor.py ", Target.LOG_MONITOR),
    ("/_private/monitor.py ", Target.MONITOR),
    ("/dashboard/dashboard.py ", Target.DASHBOARD),
    ("/ray_probe.py ", Target.PROBE),
)


def run_processes(mark: str) -> dict[tuple[Target, int], int]:
    """Return the living processes of the run whose processes have a mark, as pids by kind and rank."""
    commands = marked_processes(mark)
    found: dict[tuple[Target, int], int] = {}
    table = {pid: process.parent for pid, process in _process_table().items() if not process.is_zombie}
    for pid, command in commands.items():
        arguments = command.split(" ")
        if pid not in table:
            continue
        if _is_supervisor(arguments) and not _is_supervisor(commands.get(table[pid], "").split(" ")):
            rank = 0 if "--events" in arguments else 1
            found[Target.SUPERVISOR, rank] = pid
            bubblewrap = table[pid]
            if os.path.basename(commands.get(bubblewrap, "").split(" ")[0]) == "bwrap":
                found[Target.BUBBLEWRAP, rank] = bubblewrap
                if bubblewrap in table:
                    found[Target.WRAPPER, rank] = table[bubblewrap]
            for child in _descendants(table, pid):
                target = _target(child, table, pid)
                if target is not None:
                    found[target, rank] = child
        elif "skyrl-cleanup" in arguments:
            found[Target.CLEANER, 0] = pid
    shell = found.get((Target.SHELL, 0))
    for pid, parent in table.items():
        if parent == shell:
            found[Target.COMMAND, 0] = pid
    return found


def _is_supervisor(arguments: list[str]) -> bool:
    return len(arguments) > 3 and arguments[3].endswith("container/__main__.py")


def _target(pid: int, table: dict[int, int], supervisor: int) -> Target | None:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ")
    except OSError:
        return None
    arguments = line.split(" ")
    for part, target in _RAY_COMMANDS:
        # A process that Ray forks has the command line of its parent for a moment.
        if part in f"{arguments[0]} {' '.join(arguments[1:4])} " and "ray start" not in line:
            return target
    if table[pid] != supervisor:
        return None
    if arguments[1:2] == ["-c"] and os.path.basename(arguments[0]) in ("bash", "sh"):
        return Target.SHELL
    if arguments[1:2] == ["stream.py"]:  # the campaign's command, which replaces its shell
        return Target.SHELL
    return Target.RAY_START if "/ray start " in f"{line} " else None


def _descendants(table: dict[int, int], root: int) -> set[int]:
    found: set[int] = set()
    pending = [root]
    while pending:
        parent = pending.pop()
        children = {pid for pid, other in table.items() if other == parent} - found
        found |= children
        pending += children
    return found
