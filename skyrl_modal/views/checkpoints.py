"""Checkpoints as rows and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from skyrl_modal.formats.checkpoints import Checkpoint
from skyrl_modal.protocol.codec import encode


def checkpoint_rows(checkpoints: Sequence[Checkpoint]) -> list[tuple[str, ...]]:
    """Return the cells of a table.

    Example:
        >>> checkpoint_rows([Checkpoint(step=20, path="/root/data/a/global_step_20", complete=True, bytes=4096)])
        [('20', 'yes', '             4,096', '/root/data/a/global_step_20', '')]
    """
    return [
        (
            str(item.step),
            "yes" if item.complete else "no",
            f"{item.bytes:>18,}",
            item.path,
            "; ".join(item.missing),
        )
        for item in checkpoints
    ]


def checkpoints_to_json(checkpoints: Sequence[Checkpoint]) -> str:
    """Return the checkpoints as a JSON list."""
    return json.dumps([encode(item) for item in checkpoints], indent=2)
