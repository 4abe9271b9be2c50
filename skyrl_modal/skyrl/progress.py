"""The progress that SkyRL's trainers print."""

from __future__ import annotations

import re
from statistics import median

#: What the tracker ``console`` prints for each step (``trainer.py`` and ``tracking.py`` of August 2026).
_STEP_TIME = re.compile(r"'timing/step': '(\d+\.\d+)'")
#: The progress bar of the training loop, with the mean time of a step (tqdm; the same version).
_PROGRESS_BAR = re.compile(r"Training Batches Processed:[^\r\n]*?(\d+(?:\.\d+)?)(s/it|it/s)")


def find_seconds_per_step(output: str) -> float | None:
    """Return the time of a training step, by the output of a run; None if it contains none.

    Example:
        >>> find_seconds_per_step("Training Batches Processed:  12%|# | 7/60 [01:10<08:50, 10.0s/it]")
        10.0
    """
    times = [float(text) for text in _STEP_TIME.findall(output)]
    if times:
        return median(times)
    rates = [(float(text), unit) for text, unit in _PROGRESS_BAR.findall(output)]
    if not rates or not rates[-1][0]:
        return None
    value, unit = rates[-1]
    return value if unit == "s/it" else 1 / value
