"""The policy: a softmax over what to write next, from the words of the problem.

It reads a problem sentence by sentence. For each number after the first it writes one line of working, and the words
around the number are all it has to choose the operation by; at the end it chooses a form for the answer, of which
the environment understands one. Each choice is one of four, so it is the token of this very small language model.
"""

from __future__ import annotations

import re
import zlib
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEATURES = 512
ACTIONS = 4
OPERATIONS = ("+", "-", "*", "/")
FORMS = ("The answer is {}.", "\\boxed{{{}}}", "Answer: {}", "#### {}")


def initial_weights() -> Array:
    """Weights that prefer nothing: every choice is a fair one at first."""
    return np.zeros((FEATURES, ACTIONS))


def _features(words: list[str]) -> Array:
    """Hash words and pairs of neighbours into a vector of length one."""
    vector = np.zeros(FEATURES)
    for token in words + [f"{a} {b}" for a, b in pairwise(words)]:
        vector[zlib.crc32(token.encode()) % FEATURES] = 1.0
    return vector / np.linalg.norm(vector)


def read(problem: str) -> tuple[list[int], Array]:
    """Find the numbers of a problem, and what the policy sees at each of its choices.

    Returns:
        The numbers, and an array with a row for each choice: one for every number but the first, one for the form.
    """
    numbers: list[int] = []
    states: list[Array] = []
    for sentence in re.split(r"(?<=[.?!])\s+", problem):
        words = re.findall(r"[a-z']+|\d+", sentence.lower())
        found = [int(word) for word in words if word.isdigit()]
        if not found:
            continue
        # A sentence is about one quantity; a number said twice in it is that same quantity.
        numbers.append(found[0])
        states.append(_features(["<n>" if word.isdigit() else word for word in words]))
    return numbers, np.stack([*states[1:], _features(["<end>"])])


def log_probs(weights: Array, states: Array) -> Array:
    """The log probability of each action in each state."""
    logits = states @ weights
    logits -= logits.max(axis=-1, keepdims=True)
    result: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return result


def write(numbers: list[int], actions: list[int]) -> str:
    """Write the response that a sequence of choices stands for: the working, then the answer."""
    lines = []
    total = Fraction(numbers[0])
    for number, action in zip(numbers[1:], actions, strict=False):
        operation = OPERATIONS[action]
        before = total
        if operation == "+":
            total += number
        elif operation == "-":
            total -= number
        elif operation == "*":
            total *= number
        else:
            total /= number
        lines.append(f"{_decimal(before)} {operation} {number} = {_decimal(total)}")
    lines.append(FORMS[actions[-1]].format(_decimal(total)))
    return "\n".join(lines)


def _decimal(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}"
