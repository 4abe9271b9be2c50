"""Rollouts for people: as a transcript, as lines of JSON, and as HTML for a notebook."""

from __future__ import annotations

import json
from collections.abc import Sequence

from skyrl_modal.formats.chat_text import Message
from skyrl_modal.formats.rollout import Rollout
from skyrl_modal.views.text import escape_controls

#: Rollouts in the HTML of a list, and characters of a message there.
_HTML_ROLLOUTS, _HTML_CHARACTERS = 20, 4_000


def rollout_to_text(rollout: Rollout, *, max_characters: int | None = None) -> str:
    r"""Return a rollout as a title and its messages, without control characters.

    Args:
        rollout: The rollout.
        max_characters: Characters of a message; of a longer one, the beginning and the end are shown. None for all.

    Example:
        >>> rollout_to_text(Rollout(step=1, prompt="1 + 1?", response="2\x1b", reward=1.0))
        '== step 1  reward 1  train ==\n[user]\n1 + 1?\n[assistant]\n2\\x1b\n'
    """
    lines = [f"== {escape_controls(rollout.title)} =="]
    for message in (*rollout.prompt_messages, *rollout.response_messages):
        text = _shortened(message.content, max_characters)
        lines += [f"[{escape_controls(message.role)}]", escape_controls(text, multiline=True)]
    if rollout.truncated:
        lines.append("[a part is left out: it is too long]")
    return "\n".join([*lines, ""])


def rollout_to_json(rollout: Rollout) -> str:
    """Return a rollout as a line of JSON.

    Example:
        >>> rollout_to_json(Rollout(step=1, prompt="q", response="a"))[:46]
        '{"step": 1, "source": "train", "group": null, '
    """
    return json.dumps(rollout.to_json())


def rollouts_to_html(rollouts: Sequence[Rollout]) -> str:
    """Return the first rollouts of a list for a notebook, each with its prompt and response to unfold."""
    from skyrl_modal.views.notebook import escape  # imported here, since only notebooks need it

    def messages_to_html(messages: Sequence[Message]) -> str:
        return "".join(
            f"<div><b>{escape(each.role)}</b><pre style='white-space:pre-wrap;margin:0 0 8px 0'>"
            f"{escape(_shortened(each.content, _HTML_CHARACTERS))}</pre></div>"
            for each in messages
        )

    shown = "".join(
        f"<details><summary>{escape(each.title)}</summary>"
        f"{messages_to_html((*each.prompt_messages, *each.response_messages))}</details>"
        for each in rollouts[:_HTML_ROLLOUTS]
    )
    more = len(rollouts) - _HTML_ROLLOUTS
    count = f"{len(rollouts):,} rollouts" if len(rollouts) != 1 else "1 rollout"
    return f"<p>{count}</p>{shown}" + (f"<p>and {more:,} more</p>" if more > 0 else "")


def _shortened(text: str, characters: int | None) -> str:
    if characters is None or len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters]\n{text[-half:]}"
