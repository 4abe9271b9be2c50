"""The training prompts in a random order, whose position is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


class PromptLoader:
    """Batches of prompts: all rows in a new random order in each epoch, without an incomplete batch at the end.

    Args:
        rows: The dataset.
        batch_size: Number of rows in a batch.
        seed: Determines the order.
    """

    def __init__(self, rows: list[dict[str, Any]], batch_size: int, seed: int) -> None:
        if not 0 < batch_size <= len(rows):
            raise ValueError(f"the dataset of {len(rows)} rows should be at least as large as a batch ({batch_size})")
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0
        self._batch = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._rows) // self._batch_size

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the remaining batches of the current epoch, or those of the next one if none remain."""
        if self._batch >= len(self):
            self._epoch, self._batch = self._epoch + 1, 0
        order = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._rows))
        while self._batch < len(self):
            begin = self._batch * self._batch_size
            self._batch += 1
            yield [self._rows[index] for index in order[begin : begin + self._batch_size]]

    def state_dict(self) -> dict[str, int]:
        """Return the position after the last batch."""
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a position."""
        self._epoch, self._batch = state["epoch"], state["batch"]
