"""Read files with rollouts: the evaluations that SkyRL dumps, the records of a run, and the files of Tinker clients.

They are lines of JSON. Anyone who can write to the volume may have written them: what is no rollout is skipped and
counted, and the memory is limited for any content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from skyrl_modal.formats.metrics_rows import STEP_KEYS
from skyrl_modal.formats.metrics_writer import MAX_STEP
from skyrl_modal.formats.rollout import EVAL, FILE, MAX_NAME, Rollout, clean, make_rollout, to_name

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Any

#: Bytes of a line above which it is skipped.
MAX_LINE_BYTES = 32 << 20
#: The folder in ``trainer.export_path``, and the folder of one evaluation in it (``evaluate.py`` of August 2026).
EVALS_FOLDER = "dumped_evals"
_EVAL_FILE = re.compile(r"(?:.*/)?(?:global_step_(\d{1,15})_evals|eval_only)/([^/]+)\.jsonl", re.ASCII)
#: The file with the metrics of an evaluation, which is beside those with its rollouts.
_AGGREGATED = "aggregated_results"
#: Names that programs use, the first of which is used.
_PROMPT_KEYS = ("prompt", "input_prompt", "prompt_messages", "input", "question", "problem")
_RESPONSE_KEYS = ("response", "output_response", "completion", "output", "generation", "answer")
_REWARD_KEYS = ("reward", "total_reward", "score")
_STOP_KEYS = ("stop_reason", "finish_reason")
_GROUP_KEYS = ("group", "uid", "group_idx", "example_id", "instance_id", "prompt_id")
_CONVERSATION_KEYS = ("messages", "turns", "conversation", "trajectory")


class LineReader:
    """Divides a file into lines of limited length.

    Attributes:
        skipped: Number of lines that were longer.
    """

    def __init__(self) -> None:
        self.skipped = 0

    def lines(self, pieces: Iterable[bytes], *, keep_empty: bool = False) -> Iterator[bytes]:
        """Yield the lines of the pieces of a file, without their ends.

        Args:
            pieces: The pieces, which are small compared to the memory.
            keep_empty: Whether to yield empty lines too.
        """
        held: list[bytes] = []
        size = 0
        is_too_long = False
        for piece in pieces:
            *ended, rest = piece.split(b"\n")
            for line in ended:
                if is_too_long or size + len(line) > MAX_LINE_BYTES:
                    self.skipped += 1
                elif (whole := b"".join([*held, line])).strip() or keep_empty:
                    yield whole
                held, size, is_too_long = [], 0, False
            size += len(rest)
            if size > MAX_LINE_BYTES:
                held, is_too_long = [], True
            elif rest:
                held.append(rest)
        if is_too_long:
            self.skipped += 1
        elif (whole := b"".join(held)).strip():
            yield whole


def read_record(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line; None if it is none. Bytes that are not UTF-8 are replaced."""
    try:
        record = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def find_eval(path: str) -> tuple[int, str] | None:
    """Return the step and the source of a file of dumped evaluations by its path; None if it is none.

    An evaluation without training has the step 0.

    Example:
        >>> find_eval("dumped_evals/global_step_20_evals/openai_gsm8k.jsonl")
        (20, 'eval/openai_gsm8k')
    """
    match = _EVAL_FILE.fullmatch(path)
    if match is None or match[2] == _AGGREGATED:
        return None
    return int(match[1] or 0), clean(f"{EVAL}/{match[2]}"[:MAX_NAME])


def read_eval(line: bytes, step: int, source: str) -> Rollout | None:
    """Return the rollout of a line of a dumped evaluation; None if it is none.

    Args:
        line: The line.
        step: The step of the evaluation.
        source: Its source.
    """
    record = read_record(line)
    if record is None or not isinstance(record.get("output_response"), str):
        return None
    return make_rollout(
        step=step,
        prompt=record.get("input_prompt"),
        response=record["output_response"],
        reward=record.get("score"),
        stop_reason=record.get("stop_reason"),
        source=source,
        group=None,
    )


def read_recorded(line: bytes) -> Rollout | None:
    """Return the rollout of a line that ``rollout_writer`` has written; None if it is none."""
    record = read_record(line)
    step = None if record is None else to_step(record.get("step"))
    if record is None or step is None:
        return None
    rollout = make_rollout(
        step=step,
        prompt=record.get("prompt"),
        response=record.get("response"),
        reward=record.get("reward"),
        stop_reason=record.get("stop_reason"),
        source=to_name(record.get("source")) or FILE,
        group=record.get("group"),
    )
    if rollout is not None and record.get("cut") is True:
        object.__setattr__(rollout, "truncated", True)
    return rollout


def read_other(line: bytes, number: int) -> Rollout | None:
    """Return the rollout of a line of another program, such as a Tinker client; None if it is none.

    Args:
        line: The line.
        number: Its number, which is the step if the line has none.
    """
    record = read_record(line)
    if record is None:
        return None
    step = next((found for key in STEP_KEYS if (found := to_step(record.get(key))) is not None), number)
    prompt, response = _conversation(record)
    if response is None:
        return None
    if "traj_idx" in record and "split" in record:  # a summary of tinker_cookbook, whose groups are numbers
        record = {**record, "group": f"{record['split']}-{record.get('group_idx')}"}
    return make_rollout(
        step=step,
        prompt=prompt,
        response=response,
        reward=_first(record, _REWARD_KEYS),
        stop_reason=_first(record, _STOP_KEYS),
        source=FILE,
        group=_first(record, _GROUP_KEYS),
    )


def to_step(value: object) -> int | None:
    """Return a step; None for anything but a whole number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_STEP:
        return None
    return int(value) if value == int(value) else None


def _first(record: dict[str, Any], keys: Iterable[str]) -> Any:
    return next((record[key] for key in keys if record.get(key) is not None), None)


def _conversation(record: dict[str, Any]) -> tuple[Any, Any]:
    """Return prompt and response of a record; a response of None if it has none."""
    prompt, response = _first(record, _PROMPT_KEYS), _first(record, _RESPONSE_KEYS)
    if response is not None:
        return prompt, response
    turns = next((record[key] for key in _CONVERSATION_KEYS if isinstance(record.get(key), list)), None)
    if turns is not None:
        roles = [turn.get("role") if isinstance(turn, dict) else None for turn in turns]
        if "assistant" in roles:
            begin = roles.index("assistant")
            return (prompt if begin == 0 else turns[:begin]), turns[begin:]
    steps = record.get("steps")
    if isinstance(steps, list):  # tinker_cookbook: the texts are in what its environments log
        logs = [step["logs"] for step in steps if isinstance(step, dict) and isinstance(step.get("logs"), dict)]
        lines = [[f"{key}: {value}" for key, value in each.items() if isinstance(value, str)] for each in logs]
        texts = ["\n".join(each) for each in lines]
        if any(texts):
            return prompt, "\n".join(texts)
    return prompt, None
