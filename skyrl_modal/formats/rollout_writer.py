"""Append rollouts to a file of this process in the run's folder. Used by the hook, and by ``skyrl_modal.log_rollouts``.

It runs in the processes of the command, on Python 3.9 and later. There it is loaded by its path, after
``metrics_writer``. docs/rollouts.md describes the format and the limits.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zlib

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from skyrl_modal.formats import metrics_writer
elif __name__ == "_skyrl_modal_rollout_writer":
    metrics_writer = sys.modules["_skyrl_modal_metrics_writer"]
else:
    from skyrl_modal.formats import metrics_writer

#: The variable with the number of rollouts of a step; 0 records none.
SAMPLES = "SKYRL_MODAL_ROLLOUTS"
#: The variable with the names of the variables whose values are secret, separated by commas.
SECRETS = "SKYRL_MODAL_SECRETS"
ROLLOUTS_FOLDER = "rollouts"
#: The number of rollouts of a step if the variable is not set, and at most.
DEFAULT_SAMPLES, MAX_SAMPLES = 32, 10_000
#: Bytes of a step, and of all processes and attempts of a run.
MAX_STEP_BYTES, MAX_RUN_BYTES = 1 << 20, 128 << 20
#: Characters of a text. Of a longer one, the first and the last half of so many are kept.
MAX_TEXT = 32 << 10
MAX_NAME, MAX_MESSAGES = 200, 200
#: A shorter value of a secret is not masked, as in the output.
_MIN_SECRET, _MIN_SECRET_LINE = 4, 8
_MASK = "********"

if TYPE_CHECKING:
    from typing import Any  # here, since docs/conf.py executes this block alone

    #: Fields of a rollout for its line: ``prompt``, ``response``, ``reward``, ``group``, ``stop_reason``.
    Record = dict[str, Any]


def samples_per_step() -> int:
    """Return how many rollouts of a step are recorded."""
    text = os.environ.get(SAMPLES, "").strip()
    return min(int(text), MAX_SAMPLES) if text.isdigit() else DEFAULT_SAMPLES


def choose(groups: Sequence[str], rewards: Sequence[float | None], count: int, step: int) -> list[int]:
    """Return the positions of the rollouts to record, in ascending order.

    Whole groups are chosen, so that the responses to a prompt can be compared: first those with the highest and the
    lowest reward, then others, which differ from step to step.

    Args:
        groups: The group of each rollout.
        rewards: Its reward.
        count: Number of rollouts to choose.
        step: The step.
    """
    if len(groups) <= count:
        return list(range(len(groups)))
    members: dict[str, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(group, []).append(position)
    known = [(reward, position) for position, reward in enumerate(rewards) if reward is not None and reward == reward]
    extremes = [max(known)[1], min(known)[1]] if known else []
    others = sorted(members, key=lambda group: zlib.crc32(f"{step} {group}".encode("utf-8", "replace")))
    ordered = dict.fromkeys([*(groups[position] for position in extremes), *others])
    chosen = set(extremes[:count])
    for group in ordered:
        for position in members[group][: max(count // 2, 1)]:
            if len(chosen) >= count:
                return sorted(chosen)
            chosen.add(position)
    return sorted(chosen)


class RolloutFile(metrics_writer.PartFile):
    """The files with the rollouts of one process."""

    FOLDER = ROLLOUTS_FOLDER
    _used = -1

    def is_due(self, step: int) -> bool:
        """Return whether a step is to be recorded.

        When half of the bytes of a run are used, only each second step is; after three quarters each fourth, and so on.
        """
        if self._used < 0:
            self._used = _folder_size(self._folder)
        remaining = MAX_RUN_BYTES - self._used
        if remaining < MAX_STEP_BYTES:
            return False
        interval = 1
        while remaining * interval * 2 <= MAX_RUN_BYTES:
            interval *= 2
        return step % interval == 0

    def append(self, source: str, step: int, records: Iterable[Record]) -> None:
        """Write the rollouts of a step, as far as they fit.

        Raises:
            OSError: They cannot be written.
        """
        lines: list[bytes] = []
        size = 0
        masked = _masked_values(os.environ)
        for record in records:
            line = _to_line(source, step, record, masked)
            size += len(line)
            if size > MAX_STEP_BYTES:
                break
            lines.append(line)
        data = b"".join(lines)
        if data and self.write(lambda: data):
            self._used = max(self._used, 0) + len(data)


#: The file of this process; None before the first rollout, and outside of a run.
_file: RolloutFile | None = None


def open_file(step: int) -> RolloutFile | None:
    """Return the file of this process; None outside of a run, if nothing is to be recorded, or not of this step."""
    global _file  # noqa: PLW0603  # the state of this process
    if samples_per_step() == 0:
        return None
    if _file is None or _file.pid != os.getpid():  # a fork has the descriptor and the lock of its parent
        _file = RolloutFile.of_environment(os.environ)
    return _file if _file is not None and _file.is_due(step) else None


def log_rollouts(rollouts: Iterable[Mapping[str, Any]], *, step: int, source: str = "train") -> None:
    """Record rollouts of a step of this run, for ``Run.rollouts``.

    It can be called in any Python process of a run, once for each step. Of more than 32 rollouts, whole groups are
    chosen; the variable ``SKYRL_MODAL_ROLLOUTS`` is another number, and 0 records none. Outside of a run, the arguments
    are checked and nothing is written. What cannot be written, for example since the disk is full, is left out.

    Args:
        rollouts: For each rollout a mapping with ``prompt`` and ``response``: texts, or lists of messages with ``role``
            and ``content``. It can also have ``reward``, a number; ``stop_reason``, a text; and ``group``, which
            identifies the prompt.
        step: The step, from 0 on.
        source: What the rollouts are of: ``train``, or ``eval/NAME``.

    Raises:
        TypeError: An argument or a value has another type.
        ValueError: The step is negative, or the source is empty or has more than 200 characters.

    Example:
        >>> from skyrl_modal import log_rollouts
        >>> log_rollouts([{"prompt": "1 + 1?", "response": "2", "reward": 1.0}], step=3)
    """
    number = metrics_writer.to_step(step) if not isinstance(step, (str, bytes)) else None
    if number is None:
        error = ValueError if isinstance(step, int) and not isinstance(step, bool) else TypeError
        raise error(f"step has to be a whole number from 0 to 2**53, not {step!r}")
    if not isinstance(source, str):
        raise TypeError(f"source has to be a str, not {type(source).__name__}")
    if not 0 < len(source) <= MAX_NAME:
        raise ValueError(f"source has to have 1 to {MAX_NAME} characters, not {len(source)}")
    records = [_checked(rollout) for rollout in rollouts]
    try:
        file = open_file(number)
        if file is not None:
            groups = [
                str(record["group"]) if record["group"] is not None else f"{record['prompt']}" for record in records
            ]
            positions = choose(groups, [record["reward"] for record in records], samples_per_step(), number)
            file.append(source, number, (records[position] for position in positions))
    except (OSError, ValueError):  # as documented, the program continues without them
        return


def _checked(rollout: Mapping[str, Any]) -> Record:
    """Return the record of a rollout.

    Raises:
        TypeError: It has another type, or a value has.
    """
    if not hasattr(rollout, "keys"):
        raise TypeError(f"a rollout has to be a mapping, not {type(rollout).__name__}")
    texts = {name: rollout.get(name) for name in ("prompt", "response")}
    for name, text in texts.items():
        is_chat = isinstance(text, (list, tuple)) and all(hasattr(item, "keys") and "content" in item for item in text)
        if not isinstance(text, str) and not is_chat:
            raise TypeError(f"{name} has to be a str or a list of messages, not {text!r:.100}")
    reward, group, reason = rollout.get("reward"), rollout.get("group"), rollout.get("stop_reason")
    number = None if reward is None else metrics_writer.to_number(reward)
    if number is None and reward is not None:
        raise TypeError(f"reward has to be a number, not {type(reward).__name__}")
    if group is not None and not isinstance(group, (str, int)):
        raise TypeError(f"group has to be a str or an int, not {type(group).__name__}")
    if reason is not None and not isinstance(reason, str):
        raise TypeError(f"stop_reason has to be a str, not {type(reason).__name__}")
    return {**texts, "reward": number, "group": group, "stop_reason": reason}


def _to_line(source: str, step: int, record: Record, masked: Sequence[str]) -> bytes:
    """Return the line of a rollout. Its first key is the step, so that readers can skip it without the rest."""
    line: dict[str, Any] = {"step": step, "time": round(time.time(), 3), "source": source}
    is_cut = bool(record.get("cut"))
    for name in ("group", "reward", "stop_reason"):
        value = record.get(name)
        if value is not None:
            line[name] = mask(str(value)[:MAX_NAME], masked) if name != "reward" else value
    for name in ("prompt", "response"):
        line[name], is_short = _limited(record.get(name), masked)
        is_cut = is_cut or is_short
    if is_cut:
        line["cut"] = True
    return json.dumps(line, separators=(",", ":"), default=str).encode("ascii") + b"\n"


def _limited(value: Any, masked: Sequence[str]) -> tuple[Any, bool]:
    """Return a text, or a list of messages, with limited length and masked, and whether a part was left out."""
    if isinstance(value, str):
        text = mask(value, masked)
        half = MAX_TEXT // 2
        if len(text) <= MAX_TEXT:
            return text, False
        return f"{text[:half]}\n[{len(text) - MAX_TEXT:,} characters are left out]\n{text[-half:]}", True
    messages: list[dict[str, Any]] = []
    remaining, is_cut = MAX_TEXT, len(value or ()) > MAX_MESSAGES
    for message in list(value or ())[:MAX_MESSAGES]:
        content = message.get("content")
        text = mask(content, masked) if isinstance(content, str) else mask(json.dumps(content, default=str), masked)
        is_cut = is_cut or len(text) > remaining
        messages.append({"role": str(message.get("role", ""))[:32], "content": text[:remaining]})
        remaining -= len(messages[-1]["content"])
    return messages, is_cut


def mask(text: str, values: Iterable[str]) -> str:
    """Return a text with a mask instead of each value."""
    for value in values:
        text = text.replace(value, _MASK)
    return text


def _masked_values(env: Mapping[str, str]) -> list[str]:
    """Return the texts under which values of secrets can appear, the longest first."""
    found = set()
    for name in filter(None, env.get(SECRETS, "").split(",")):
        value = env.get(name, "")
        lines = [line.strip() for line in value.splitlines()]
        texts = {value, value.strip(), *(line for line in lines if len(line) >= _MIN_SECRET_LINE)}
        found |= {form for text in texts for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1])}
    return sorted((text for text in found if len(text) >= _MIN_SECRET), key=len, reverse=True)


def _folder_size(folder: str) -> int:
    """Return the size of the files in a folder: of other processes, ranks and attempts."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0
