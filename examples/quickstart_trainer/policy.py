"""The policy: a linear softmax model that chooses the next part of the response from the text of the problem.

It reads a problem sentence by sentence. For each number after the first, it writes one line of calculation, and chooses
the operation from the tokens of the sentence. At the end it chooses one of four formats for the answer, of which the
environment accepts one. Each choice is one of four actions, the vocabulary of this very small language model.
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
ANSWER_FORMATS = ("The answer is {}.", "\\boxed{{{}}}", "Answer: {}", "#### {}")


def initial_weights() -> Array:
    """Return zero weights, with which all actions are equally likely."""
    return np.zeros((FEATURES, ACTIONS))


def _features(tokens: list[str]) -> Array:
    """Hash tokens and pairs of adjacent tokens into a vector of length one."""
    vector = np.zeros(FEATURES)
    for token in tokens + [f"{a} {b}" for a, b in pairwise(tokens)]:
        vector[zlib.crc32(token.encode()) % FEATURES] = 1.0
    return vector / np.linalg.norm(vector)


def read(problem: str) -> tuple[list[int], Array]:
    """Return the numbers of a problem, and the policy's input for each choice.

    Returns:
        The numbers, and an array with a row for each choice: one for each number after the first, and one for the
        format of the answer.
    """
    numbers: list[int] = []
    states: list[Array] = []
    for sentence in re.split(r"(?<=[.?!])\s+", problem):
        tokens = re.findall(r"[a-z']+|\d+", sentence.lower())
        found = [int(token) for token in tokens if token.isdigit()]
        if not found:
            continue
        # A sentence has one quantity. If it contains two numbers, they are equal.
        numbers.append(found[0])
        states.append(_features(["<n>" if token.isdigit() else token for token in tokens]))
    return numbers, np.stack([*states[1:], _features(["<end>"])])


def log_probs(weights: Array, states: Array) -> Array:
    """Return the log probability of each action in each state."""
    logits = states @ weights
    logits -= logits.max(axis=-1, keepdims=True)
    result: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return result


def write(numbers: list[int], actions: list[int]) -> str:
    """Return the response for a sequence of choices: the calculation, then the answer."""
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
    lines.append(ANSWER_FORMATS[actions[-1]].format(_decimal(total)))
    return "\n".join(lines)


def _decimal(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}"
