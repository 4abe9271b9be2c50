"""What the campaign draws: for each number of a seed one run with one fault at one moment, always the same."""

from __future__ import annotations

import random

import attrs

from .stream import MANNERS

#: One round of the campaign: each fault on each backend that it can happen on.
ROUND = (
    ("none", "local"),
    ("none", "modal"),
    ("client SIGKILL", "local"),
    ("client SIGKILL", "modal"),
    ("client SIGTERM", "local"),
    ("client SIGTERM", "modal"),
    ("client stopped", "local"),
    ("client stopped", "modal"),
    ("Ctrl-C", "local"),
    ("Ctrl-C", "modal"),
    ("Ctrl-C twice", "local"),
    ("Ctrl-C twice", "modal"),
    ("cancel", "local"),
    ("cancel", "modal"),
    ("cancel a tree", "local"),
    ("cancel a tree", "modal"),
    ("supervisor SIGKILL", "local"),
    ("supervisor SIGKILL", "modal"),
    ("rank 1 SIGKILL", "local"),
    ("rank 1 SIGKILL", "modal"),
    ("raylet SIGKILL", "local"),
    ("dropped stream", "modal"),
    ("UNAVAILABLE", "modal"),
    ("offline", "modal"),
    ("preemption", "modal"),
    ("time-out", "local"),
    ("time-out", "modal"),
    ("full volume", "local"),
    ("full volume", "modal"),
)
FAULTS = tuple(dict.fromkeys(fault for fault, _ in ROUND))
#: Faults that the command stays for, so that it is the fault that ends the run.
ENDING = frozenset(
    {
        "client SIGKILL",
        "client SIGTERM",
        "Ctrl-C",
        "Ctrl-C twice",
        "cancel",
        "cancel a tree",
        "supervisor SIGKILL",
        "rank 1 SIGKILL",
        "raylet SIGKILL",
        "time-out",
    }
)
#: Faults that may also come before the command has printed anything, or has begun.
ANYTIME = frozenset({"client SIGKILL", "client SIGTERM", "Ctrl-C", "Ctrl-C twice", "cancel"})
#: Faults that come to runs of one node only: a raylet of several has tests of its own, and so has a full volume.
ALONE = frozenset({"raylet SIGKILL", "full volume"})


@attrs.frozen
class Case:
    """One run of the campaign.

    Attributes:
        seed: The campaign's.
        number: The run's in it.
        backend: Where it runs.
        fault: What happens.
        stream: Seed of the command's output.
        lines: Lines of it.
        longest: Bytes of its longest lines.
        manner: How the command takes INT and TERM.
        code: What it ends with where nothing stops it.
        moment: Lines of output after which the fault comes; 0: after our own first line.
        delay: Seconds after the moment.
        again: Seconds until it comes again, or is over, where that says something; and for how often see ``times``.
        times: How often it comes, where it may come more than once.
        nodes: Nodes of the run; without Ray, unless that is what is killed.
    """

    seed: int
    number: int
    backend: str
    fault: str
    stream: int
    lines: int
    longest: int
    manner: str
    code: int
    moment: int
    delay: float
    again: float
    times: int
    nodes: int

    @property
    def is_early(self) -> bool:
        """Whether the fault may come before the command has begun."""
        return self.moment == 0

    @property
    def fields(self) -> dict[str, object]:
        """The launcher's fields."""
        # Who ends by itself is given all the time that a busy machine may take; who does not, no more than needed.
        fields: dict[str, object] = {"grace": 1 if self.manner == "ignores" else 30, "timeout": 600}
        if self.nodes > 1:
            fields |= {"nodes": self.nodes, "gpu": "H100:8" if self.backend == "modal" else None}
        if self.fault == "time-out":
            fields["timeout"] = round(0.3 + self.again, 3)
        return fields

    @property
    def command(self) -> str:
        words = [f"exec python3 stream.py {self.stream} {self.lines} --longest {self.longest} --manner {self.manner}"]
        words.append(f"--code {self.code}")
        if self.fault in ENDING:
            words.append("--stay")
        if self.fault == "cancel a tree":
            words.append("--grandchildren 2")
        if self.backend == "local" and self.fault != "full volume":
            words.append("--port-file /root/data/port")
        return " ".join(words)


def draw(seed: int, number: int) -> Case:
    """The case of a number."""
    fault, backend = ROUND[number % len(ROUND)]
    rng = random.Random(f"{seed}/{number}")
    lines = rng.randrange(20, 200) * (3 if fault == "preemption" else 1)  # a moment's news of it comes late from Modal
    early = fault in ANYTIME and rng.random() < 0.2
    again = rng.uniform(0.2, 3.0)
    return Case(
        seed=seed,
        number=number,
        backend=backend,
        fault=fault,
        stream=rng.randrange(1 << 30),
        lines=lines,
        longest=rng.choice([200, 4000, 4000, 100_000]) if fault != "full volume" else 4000,
        manner="ignores" if fault == "cancel a tree" else rng.choice(MANNERS),
        code=rng.choice([0, 0, 0, 1, 2, 77, 137, 255]),
        moment=0
        if early
        else rng.randrange(1, lines if fault in ENDING else lines // (6 if fault == "preemption" else 2)),
        # A start takes a tenth of a second, or two: its steps are to be met as well as the waiting after them.
        delay=rng.uniform(0, rng.choice([0.1, 0.3, 2.0]) if early else 0.2),
        again=again,
        times=rng.choice([1, 1, 2, 3]),
        nodes=2 if fault == "rank 1 SIGKILL" else 1 if fault in ALONE else rng.choice([1, 1, 1, 2]),
    )
