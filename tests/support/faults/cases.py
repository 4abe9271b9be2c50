"""The cases of the campaign: each number of a seed is one run with one fault, always the same."""

from __future__ import annotations

import random

import attrs

from tests.support.kill_table import (
    OTHER_RANK,
    RANK_ZERO,
    RAY_ON_RANK_ZERO,
    SUCCEEDED,
    Ending,
    Phase,
    Target,
)

from .stream import SIGNAL_RESPONSES

#: Faults that kill a process of a local run, with the process, its rank, and how the run may end.
KILLS: dict[str, tuple[Target, int, tuple[Ending, ...]]] = {
    f"kill {target}{' of rank 1' if rank else ''}": (target, rank, table[target][Phase.COMMAND])
    for rank, table, targets in (
        (0, RANK_ZERO, (Target.WRAPPER, Target.CLEANER, Target.BUBBLEWRAP, Target.SHELL)),
        (1, OTHER_RANK, (Target.WRAPPER, Target.BUBBLEWRAP)),
        (
            0,
            RAY_ON_RANK_ZERO,
            (Target.RAY_START, Target.GCS_SERVER, Target.DASHBOARD_AGENT, Target.RUNTIME_ENV_AGENT),
        ),
    )
    for target in targets
}
#: One round of the campaign: each fault on each backend where it can occur.
ROUND = (
    ("none", "local"),
    ("none", "modal"),
    ("client SIGKILL", "local"),
    ("client SIGKILL", "modal"),
    ("client SIGTERM", "local"),
    ("client SIGTERM", "modal"),
    ("client SIGSTOP", "local"),
    ("client SIGSTOP", "modal"),
    ("Ctrl-C", "local"),
    ("Ctrl-C", "modal"),
    ("Ctrl-C twice", "local"),
    ("Ctrl-C twice", "modal"),
    ("cancel", "local"),
    ("cancel", "modal"),
    ("cancel process tree", "local"),
    ("cancel process tree", "modal"),
    ("supervisor SIGKILL", "local"),
    ("supervisor SIGKILL", "modal"),
    ("rank 1 SIGKILL", "local"),
    ("rank 1 SIGKILL", "modal"),
    ("raylet SIGKILL", "local"),
    ("dropped stream", "modal"),
    ("UNAVAILABLE", "modal"),
    ("offline", "modal"),
    ("preemption", "modal"),
    ("timeout", "local"),
    ("timeout", "modal"),
    ("full volume", "local"),
    ("full volume", "modal"),
    ("slow reader, cancel", "local"),
    ("slow reader, cancel", "modal"),
    ("slow reader, timeout", "local"),
    ("slow reader, timeout", "modal"),
    *((fault, "local") for fault in KILLS),
)
FAULTS = tuple(dict.fromkeys(fault for fault, _ in ROUND))
#: Faults that end the run. The command does not exit by itself, so that it is the fault that ends it.
ENDING_FAULTS = frozenset(
    {
        "client SIGKILL",
        "client SIGTERM",
        "Ctrl-C",
        "Ctrl-C twice",
        "cancel",
        "cancel process tree",
        "supervisor SIGKILL",
        "rank 1 SIGKILL",
        "raylet SIGKILL",
        "timeout",
        "slow reader, cancel",
        "slow reader, timeout",
        *(fault for fault, (_, _, endings) in KILLS.items() if SUCCEEDED not in endings),
    }
)
#: Faults of runs that exceed their timeout.
TIMEOUT_FAULTS = frozenset({"timeout", "slow reader, timeout"})
#: Faults that need Ray.
RAY_FAULTS = frozenset({"raylet SIGKILL", *(f"kill {target}" for target in RAY_ON_RANK_ZERO)}) & {*FAULTS}
#: Faults of a rank other than 0.
RANK_FAULTS = frozenset({"rank 1 SIGKILL", *(fault for fault, (_, rank, _) in KILLS.items() if rank)})
#: Faults that may also be injected before the command has started or printed anything.
EARLY_FAULTS = frozenset({"client SIGKILL", "client SIGTERM", "Ctrl-C", "Ctrl-C twice", "cancel"})
#: Faults for runs on one node only. A raylet and a full volume on several nodes have their own tests.
SINGLE_NODE_FAULTS = RAY_FAULTS | {"full volume"}


@attrs.frozen
class Case:
    """One run of the campaign.

    Attributes:
        seed: Seed of the campaign.
        number: Number of the case.
        backend: Name of the backend.
        fault: Name of the fault.
        stream_seed: Seed of the command's output.
        lines: Number of output lines.
        longest_line: Maximum number of bytes in a line.
        on_signal: Response of the command to INT and TERM, one of `SIGNAL_RESPONSES`.
        exit_code: Exit code of the command if it is not stopped.
        after_lines: Number of output lines before the fault is injected; 0: after the launcher's first message.
        delay: Seconds between that line and the fault.
        interval: Seconds until a fault is repeated, or until it is over.
        repetitions: How often a fault is injected, if it can be repeated.
        nodes: Number of nodes. They run no Ray, unless the fault concerns Ray.
    """

    seed: int
    number: int
    backend: str
    fault: str
    stream_seed: int
    lines: int
    longest_line: int
    on_signal: str
    exit_code: int
    after_lines: int
    delay: float
    interval: float
    repetitions: int
    nodes: int

    @property
    def has_slow_reader(self) -> bool:
        """Whether the caller's output is not read from the fault until the end of the run."""
        return self.fault.startswith("slow reader")

    @property
    def is_early(self) -> bool:
        """Whether the fault may be injected before the command has started."""
        return self.after_lines == 0

    @property
    def fields(self) -> dict[str, object]:
        """The launcher's fields."""
        # A command that exits by itself gets enough time for a busy machine; one that ignores signals is killed soon.
        fields: dict[str, object] = {"grace": 1 if self.on_signal == "ignore" else 30, "timeout": 600}
        if self.nodes > 1:
            fields |= {"nodes": self.nodes, "gpu": "H100:8" if self.backend == "modal" else None}
        if self.fault == "client SIGKILL" and self.backend == "modal":
            fields["lease"] = 8  # the run ends when it has expired
        if self.fault in TIMEOUT_FAULTS:
            fields["timeout"] = round(0.3 + self.interval, 3)
        return fields

    @property
    def command(self) -> str:
        """The command, which runs stream.py."""
        parts = [f"exec python3 stream.py {self.stream_seed} {self.lines} --longest-line {self.longest_line}"]
        parts.append(f"--on-signal {self.on_signal} --exit-code {self.exit_code}")
        if self.fault in ENDING_FAULTS:
            parts.append("--stay")
        if self.fault == "cancel process tree":
            parts.append("--grandchildren 2")
        if self.backend == "local" and self.fault != "full volume":
            parts.append("--port-file /root/data/port")
        return " ".join(parts)


def draw(seed: int, number: int) -> Case:
    """Return the case with a number. Equal arguments return equal cases."""
    fault, backend = ROUND[number % len(ROUND)]
    rng = random.Random(f"{seed}/{number}")
    # A preempted run needs more lines: Modal's log arrives late, and the command must still run then.
    # The output that is not read has to be larger than all buffers.
    is_slow = fault.startswith("slow reader")
    lines = rng.randrange(20, 200) * (3 if fault == "preemption" else 1) + (500 if is_slow else 0)
    early = fault in EARLY_FAULTS and rng.random() < 0.2
    interval = rng.uniform(0.2, 3.0)
    return Case(
        seed=seed,
        number=number,
        backend=backend,
        fault=fault,
        stream_seed=rng.randrange(1 << 30),
        lines=lines,
        longest_line=100_000 if is_slow else 4000 if fault == "full volume" else rng.choice([200, 4000, 4000, 100_000]),
        on_signal="ignore" if fault == "cancel process tree" else rng.choice(SIGNAL_RESPONSES),
        exit_code=rng.choice([0, 0, 0, 1, 2, 77, 137, 255]),
        after_lines=0
        if early
        else 1
        if is_slow
        else rng.randrange(1, lines if fault in ENDING_FAULTS else lines // (6 if fault == "preemption" else 2)),
        # A start takes 0.1 s or 2 s. Short delays meet its steps, and long ones the wait that follows.
        delay=rng.uniform(0, rng.choice([0.1, 0.3, 2.0]) if early else 0.2),
        interval=interval,
        repetitions=rng.choice([1, 1, 2, 3]),
        nodes=2 if fault in RANK_FAULTS else 1 if fault in SINGLE_NODE_FAULTS else rng.choice([1, 1, 1, 2]),
    )
