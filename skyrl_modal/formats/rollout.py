"""A rollout: what a model answered to a prompt, and the reward. Readers of files return it."""

from __future__ import annotations

import hashlib
import math

from skyrl_modal.dataclass import dataclass
from skyrl_modal.formats.chat_text import Message, has_marks, split_chat

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Any

#: Characters of a prompt or response. Of a longer one, the first and the last half of so many are kept.
MAX_TEXT = 256 << 10
#: Characters of a name, such as a source, a group or a stop reason.
MAX_NAME = 200
#: The role of the pieces of a response that the model has not generated.
ENVIRONMENT = "environment"
#: What recorded the rollouts of a training, what its evaluations wrote, and what was printed as an example.
TRAIN, EVAL, PRINTED, FILE = "train", "eval", "printed", "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """What a model answered to a prompt, and the reward for it.

    ``print`` shows it as a conversation. Control characters are part of the texts; replace them before a terminal.

    Attributes:
        step: The training step; 0 for an evaluation without training.
        prompt: What the model read, with the marks of its chat template where the source has them.
        response: What was generated. In a trajectory of several turns it contains the answers of the environment.
        reward: The total reward; None if it is not known.
        stop_reason: Why the generation ended, such as ``stop`` or ``length``; None if it is not known.
        source: ``train``: recorded during the training. ``eval/NAME``: an evaluation on a data source. ``printed``: an
            example in the output. ``file``: a file that was named.
        group: Identifies the prompt: rollouts of a step with the same group answer the same prompt.
        truncated: Whether a part of the prompt or response was left out since it is too long.
        prompt_messages: The prompt as messages.
        response_messages: The response as messages. The first is that of the model.

    Example:
        >>> from skyrl_modal import Rollout
        >>> rollout = Rollout(step=3, prompt="1 + 1?", response="2", reward=1.0)
        >>> print(rollout)
        step 3  reward 1  train
        [user]
        1 + 1?
        [assistant]
        2
    """

    step: int
    prompt: str
    response: str
    reward: float | None = None
    stop_reason: str | None = None
    source: str = TRAIN
    group: str | None = None
    truncated: bool = False
    prompt_messages: tuple[Message, ...] = ()
    response_messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        """Divide the texts into messages if these were not given."""
        set_field = object.__setattr__  # the class is frozen
        if not self.prompt_messages:
            set_field(self, "prompt_messages", split_chat(self.prompt, "user"))
        if not self.response_messages:
            set_field(self, "response_messages", split_chat(self.response, "assistant"))

    @property
    def title(self) -> str:
        """Step, reward, stop reason and source as one line."""
        reward = "not known" if self.reward is None else f"{self.reward:g}"
        parts = [f"step {self.step:,}", f"reward {reward}", self.stop_reason or "", self.source]
        return "  ".join(filter(None, parts))

    def __str__(self) -> str:
        messages = [*self.prompt_messages, *self.response_messages]
        return "\n".join([self.title, *(f"[{each.role}]\n{each.content}" for each in messages)])

    def to_json(self) -> dict[str, Any]:
        """Return it as data for JSON: prompt and response as lists of messages, a reward that is not finite as None."""
        return {
            "step": self.step,
            "source": self.source,
            "group": self.group,
            "prompt": [{"role": each.role, "content": each.content} for each in self.prompt_messages],
            "response": [{"role": each.role, "content": each.content} for each in self.response_messages],
            "reward": self.reward if self.reward is not None and math.isfinite(self.reward) else None,
            "stop_reason": self.stop_reason,
            "truncated": self.truncated,
        }


def make_rollout(
    *, step: int, prompt: object, response: object, reward: object, stop_reason: object, source: str, group: object
) -> Rollout | None:
    """Return a rollout for values that were read from a file; None if they are none.

    Args:
        step: The step.
        prompt: A text, or a list of messages.
        response: A text, or a list of messages. What is no message of the model is that of its environment.
        reward: A number, or a list with one for each token.
        stop_reason: A text.
        source: The source.
        group: A text or number that identifies the prompt; None for a digest of the prompt.
    """
    asked, answered = _Text.of(prompt, "user"), _Text.of(response, "assistant")
    if answered is None or (asked is None and prompt is not None):
        return None
    asked = asked or _Text("", (), False)
    return Rollout(
        step=step,
        prompt=asked.text,
        response=answered.text,
        reward=to_reward(reward),
        stop_reason=to_name(stop_reason),
        source=source,
        group=to_name(group) or (_digest(asked.text) if asked.text else None),
        truncated=asked.is_cut or answered.is_cut,
        prompt_messages=asked.messages,
        response_messages=answered.messages,
    )


def to_name(value: object) -> str | None:
    """Return a short text or a whole number as a text; None for anything else."""
    if isinstance(value, str) and value:
        return clean(value[:MAX_NAME])
    return f"{value}" if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def to_reward(value: object) -> float | None:
    """Return the total reward; None if there is none.

    Example:
        >>> to_reward([0.0, 0.5, 1.0]), to_reward(True), to_reward("1")
        (1.5, 1.0, None)
    """
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, int | float) for item in items):
        return None
    try:
        return float(sum(items))
    except OverflowError:  # an int that no float can represent
        return None


def clean(text: str) -> str:
    """Return a text in which what is no character, such as half of a surrogate pair, is replaced."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def cut(text: str) -> tuple[str, bool]:
    """Return a text of limited length, and whether a part of it was left out."""
    if len(text) <= MAX_TEXT:
        return clean(text), False
    half = MAX_TEXT // 2
    return clean(f"{text[:half]}\n[{len(text) - 2 * half:,} characters are left out]\n{text[-half:]}"), True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class _Text:
    """A prompt or a response."""

    text: str
    messages: tuple[Message, ...]
    is_cut: bool

    @classmethod
    def of(cls, value: object, role: str) -> _Text | None:
        if isinstance(value, str):
            text, is_cut = cut(value)
            return cls(text, (), is_cut)
        if not isinstance(value, list):
            return None
        found = [_to_message(item, role) for item in value[:_MAX_LIST]]
        messages = [message for message in found if message is not None]
        if len(messages) < len(found) or (value and not messages):
            return None
        whole = "".join(message.content for message in messages)
        if any(message.role == ENVIRONMENT and has_marks(message.content) for message in messages):
            # Pieces of one text, in which the template has the roles.
            text, is_cut = cut(whole)
            return cls(text, split_chat(text, messages[0].role), is_cut or len(value) > _MAX_LIST)
        if any(message.role == ENVIRONMENT for message in messages):  # the marks are at the ends of the model's turns
            messages = [part for message in messages for part in split_chat(message.content, message.role)]
        if len(whole) > MAX_TEXT:
            share = MAX_TEXT // len(messages)
            messages = [Message(message.role, message.content[:share]) for message in messages]
        parts = [f"[{each.role}]\n{each.content}" for each in messages]
        text = messages[0].content if len(messages) == 1 else "\n".join(parts)
        return cls(text, tuple(messages), len(whole) > MAX_TEXT or len(value) > _MAX_LIST)


#: Messages of a list.
_MAX_LIST = 1_000


def _to_message(value: object, role: str) -> Message | None:
    """Return the message of an object with a role and a content, which can be a list of parts; None for another one."""
    if isinstance(value, str):
        return Message(role, clean(value))
    if not isinstance(value, dict):
        return None
    content = value.get("content")
    if isinstance(content, list):  # of a model that reads images too
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text if isinstance(text, str) else "[no text]" for text in texts)
    if content is None and isinstance(value.get("tool_calls"), list):
        content = ""
    name = to_name(value.get("role"))
    if not isinstance(content, str):
        return None
    return Message((name or role)[:32], clean(content))
