"""Find the examples that SkyRL's trainers print: one of each step, and one of each evaluation.

``pretty_print_example`` (``train/utils/trajectory_logging.py``, August 2026) logs the prompt, the total reward and the
response. The step follows: the tracker ``console`` prints ``Step N:``, else the progress bar shows it. A fully
asynchronous training prints ``Example generated:`` and the response.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

from skyrl_modal.formats.rollout import MAX_TEXT, PRINTED, Rollout, make_rollout
from skyrl_modal.formats.rollout_files import LineReader, to_step

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Any

#: Number of examples that are kept, the newest ones, and characters of a line that are looked at.
_MAX_EXAMPLES, _MAX_LINE = 10_000, 2 * MAX_TEXT
#: Characters of a line in which a progress bar is searched for.
_MAX_BAR = 2_000
_COLORS = re.compile(r"\x1b\[[0-9;]{0,20}[mK]")
#: What Ray puts before each line of a worker, and loguru before each message.
_WORKER = re.compile(r"^\(([^()]{1,200} pid=\d{1,10}[^()]{0,100})\) ?")
_HEADER = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d{3,6} \| [A-Z]{4,8} {0,4} \| [\w.<>]{1,200}:[\w<>]{1,100}:\d{1,6} - "
)
#: What a line outside of an example has if it is of use.
_MARKS = re.compile(rb"Example|Step \d|Training Batches Processed|'eval'")
_PROMPT, _GENERATED = "  Input: ", "Example generated: "
_REWARD = re.compile(r"  Output \(Total Reward: (N/A|-?\d{1,30}\.\d{1,10}|-?inf|nan)\):")
_STEP = re.compile(r"Step (\d{1,16}):")
_BAR = re.compile(r"Training Batches Processed:[^\r\n]{0,200}? (\d{1,16})/\d{1,16} \[")
_EVAL_STARTS, _EVAL_ENDS = "Started: 'eval'", "Finished: 'eval'"


class ExampleReader:
    """Reads the output of a run.

    Attributes:
        rollouts: The examples that were found, by their order. Those of a step that was trained again are replaced.
    """

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []
        self._workers: dict[str, _Worker] = {}
        self._open: set[str] = set()
        self._last_step = -1
        self._has_steps = False

    def read(self, pieces: Iterable[bytes]) -> None:
        """Read the pieces of the output."""
        for line in LineReader().lines(pieces, keep_empty=True):
            if not self._open and _MARKS.search(line, 0, _MAX_LINE) is None:
                continue  # most lines of a long output
            for part in line[:_MAX_LINE].removesuffix(b"\r").split(b"\r"):
                if part or not line:
                    self._read_line(_COLORS.sub("", part.decode("utf-8", "replace")))
        for worker in self._workers.values():
            worker.end()
            self._assign(worker, self._last_step + 1)

    def _read_line(self, line: str) -> None:
        match = _WORKER.match(line)
        name = "" if match is None else match[1].partition(",")[0]
        if name not in self._workers and len(self._workers) >= 1_000:
            return
        worker = self._workers.setdefault(name, _Worker())
        self._read_text(worker, line if match is None else line[match.end() :])
        (self._open.add if worker.is_open else self._open.discard)(name)

    def _read_text(self, worker: _Worker, text: str) -> None:
        """Read a line of a process."""
        bars = list(_BAR.finditer(text[:_MAX_BAR]))
        for bar in bars:
            self._read_bar(int(bar[1]))
        header = _HEADER.search(text)
        if header is None:
            if not bars:
                worker.add(text)
            return
        worker.end()
        message = text[header.end() :]
        step_line = _STEP.match(message)
        if step_line is not None:
            self._last_step = self._last_step if self._has_steps else -1
            self._has_steps = True
            self._assign(worker, int(step_line[1]))
        worker.begin(message)

    def _read_bar(self, step: int) -> None:
        """Read the number of steps in the progress bar, which dynamic sampling moves more often."""
        if self._has_steps or step == self._last_step:
            return
        is_resumed = step < self._last_step
        for worker in self._workers.values():
            worker.end()
            self._assign(worker, self._last_step + 1 if is_resumed else step)
        if is_resumed:
            self.rollouts = [each for each in self.rollouts if each.step <= step]
        self._last_step = step

    def _assign(self, worker: _Worker, step: int) -> None:
        """Add the examples of a process that have no step yet."""
        if to_step(step) is None:
            return
        found, worker.found = worker.found, []
        if found and step < self._last_step:  # a resumed attempt
            self.rollouts = [each for each in self.rollouts if each.step < step]
        made = [make_rollout(step=step, stop_reason=None, group=None, **fields) for fields in found]
        self.rollouts += [rollout for rollout in made if rollout is not None]
        del self.rollouts[:-_MAX_EXAMPLES]
        self._last_step = step


class _Worker:
    """The lines of one process.

    Attributes:
        found: Fields of the examples that have no step yet.
    """

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._prompt: list[str] | None = None
        self._reward: str | None = None
        self._response: list[str] | None = None
        self._size = 0
        self._is_eval = False

    @property
    def is_open(self) -> bool:
        """Whether the next line may belong to an example."""
        return self._prompt is not None or self._response is not None

    def begin(self, message: str) -> None:
        """Read the first line of a message."""
        if message.startswith(_EVAL_STARTS):
            self._is_eval = True
        elif message.startswith(_EVAL_ENDS):
            self._is_eval = False
        elif message.startswith(_GENERATED):
            self._prompt, self._reward, self._response = None, None, [message.removeprefix(_GENERATED)]
        elif message.rstrip() == "Example:":
            self._prompt, self._response = [], None
        self._size = 0

    def add(self, line: str) -> None:
        """Read a further line of a message."""
        line = line[: max(_MAX_LINE - self._size, 0)]
        self._size += len(line) + 1
        if self._size > _MAX_LINE + 1:
            return
        if self._response is not None:
            self._response.append(line)
        elif self._prompt is not None:
            output = _REWARD.match(line)
            if output is not None and self._prompt:
                self._reward, self._response = output[1], []
            elif self._prompt or line.startswith(_PROMPT):
                self._prompt.append(line.removeprefix(_PROMPT) if not self._prompt else line)

    def end(self) -> None:
        """End a message."""
        if self._response is not None and len(self.found) < _MAX_EXAMPLES:
            source = f"{PRINTED}/eval" if self._is_eval else PRINTED
            prompt = None if self._prompt is None else _to_prompt("\n".join(self._prompt))
            reward = None if self._reward in (None, "N/A") else float(str(self._reward))
            self.found.append(
                {"prompt": prompt, "response": "\n".join(self._response), "reward": reward, "source": source}
            )
        self._prompt, self._reward, self._response = None, None, None


def _to_prompt(text: str) -> object:
    """Return the messages that ``str`` has printed; the text itself if it is no list of messages."""
    if text.startswith("[{") and len(text) <= MAX_TEXT:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if isinstance(value, list) and all(isinstance(item, dict) and "content" in item for item in value):
            return value
    return text
