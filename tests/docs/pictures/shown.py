"""What the pictures of terminals show."""

from __future__ import annotations

from dataclasses import dataclass

#: Widths of terminals: the smallest one that is supported, and a wide one.
WIDTHS = (80, 200)
ANIMATION = "quickstart.svg"


@dataclass(frozen=True)
class Terminal:
    """A picture of a terminal.

    Args:
        name: The name of the file, without the width.
        title: What it shows.
        commands: Lines of a shell.
    """

    name: str
    title: str
    commands: tuple[str, ...]

    def file_name(self, width: int) -> str:
        """Return the name of the file."""
        return f"{self.name}-{width}.svg"


#: What the animation shows.
QUICKSTART = Terminal(
    "quickstart",
    "A training in two runs, the list of the runs, the rewards, and the checkpoints",
    (
        "python examples/quickstart.py",
        "skyrl-modal ps",
        "skyrl-modal metrics latest --key reward/avg_raw_reward",
        "skyrl-modal checkpoints latest",
    ),
)
STILLS = (
    Terminal("plan", "A plan", ("skyrl-modal plan 'bash examples/train/gsm8k/run_gsm8k.sh'",)),
    Terminal("run", "A run", ("skyrl-modal run --no-ray 'for step in 1 2 3; do echo step $step; done'",)),
    Terminal(
        "error",
        "A declaration that is refused, and a run that fails",
        (
            "skyrl-modal run --timeout soon 'python train.py'",
            "skyrl-modal run --no-ray 'python train.py'",
        ),
    ),
    Terminal("ps", "The list of runs", ("skyrl-modal ps",)),
    Terminal("metrics", "Plots of metrics", ("skyrl-modal metrics latest",)),
)
