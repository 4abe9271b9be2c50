r"""Divide a text with the marks of a chat template into messages.

SkyRL stores prompts and responses as the model reads and writes them, such as ``<|im_start|>user\n…<|im_end|>``. The
marks are those of ChatML (Qwen), Llama 3, Gemma, DeepSeek, Mistral, and of GLM and Phi.
"""

from __future__ import annotations

import re

from skyrl_modal.dataclass import dataclass

#: Number of messages of a text; the rest of the text is a part of the last one.
MAX_MESSAGES = 1_000
_ROLE = "[a-z_]{1,32}"
_BEGIN = (
    rf"<\|im_start\|>(?P<chatml>{_ROLE})\n?"
    rf"|<\|start_header_id\|>(?P<llama>{_ROLE})<\|end_header_id\|>\n{{0,2}}"
    r"|<start_of_turn>(?P<gemma>user|model)\n?"
    r"|<\|(?P<glm>system|user|assistant|observation|tool)\|>\n?"
    r"|<\uff5c(?P<deepseek>User|Assistant)\uff5c>"
    r"|\[(?P<mistral>/?INST)\] ?"
)
_END = (
    r"<\|im_end\|>\n?|<\|eot_id\|>|<\|eom_id\|>|<end_of_turn>\n?|<\|end\|>\n?"
    r"|<\uff5cend\u2581of\u2581sentence\uff5c>|<\uff5cbegin\u2581of\u2581sentence\uff5c>"
    r"|<\|endoftext\|>|<\|begin_of_text\|>|<\|end_of_text\|>|<bos>|<eos>|<pad>|</?s>|\[gMASK\]<sop>"
)
_MARKS = re.compile(f"{_BEGIN}|{_END}")
_ROLES = {"model": "assistant", "observation": "tool", "INST": "user", "/INST": "assistant", "ipython": "tool"}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who wrote it: ``system``, ``user``, ``assistant``, ``tool`` or ``environment``.
        content: Its text.
    """

    role: str
    content: str


def has_marks(text: str) -> bool:
    """Return whether a text contains marks of a chat template."""
    return _MARKS.search(text) is not None


def split_chat(text: str, first_role: str) -> tuple[Message, ...]:
    r"""Return the messages of a text. Empty ones are left out.

    Args:
        text: The text.
        first_role: The role of what precedes the first mark; of the whole text if there is none.

    Example:
        >>> split_chat("2<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n", "assistant")
        (Message(role='assistant', content='2'), Message(role='user', content='Why?'))
    """
    messages: list[Message] = []
    role, begin = first_role, 0
    for mark in _MARKS.finditer(text):
        if len(messages) >= MAX_MESSAGES - 1:
            break
        _add(messages, role, text[begin : mark.start()])
        begin = mark.end()
        if mark.lastgroup is not None:
            name = mark[mark.lastgroup]
            role = _ROLES.get(name, name.lower())
    _add(messages, role, text[begin:])
    return tuple(messages)


def _add(messages: list[Message], role: str, content: str) -> None:
    if content.strip():
        messages.append(Message(role, content.strip("\n")))
