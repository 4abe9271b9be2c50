"""GRPO: advantages relative to the group of one prompt, a clipped ratio objective, and Adam. Does not use Ray."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import policy
from policy import Array

BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Settings:
    """Settings of the training: learning rate, epochs for each batch, and the clip range of the ratio."""

    learning_rate: float
    epochs: int = 4
    clip: float = 0.2


@dataclass(frozen=True)
class State:
    """State of the training, as stored in a checkpoint."""

    step: int
    updates: int
    weights: Array
    momentum: Array
    scale: Array

    @classmethod
    def initial(cls) -> State:
        """Return the state before the first step."""
        weights = policy.initial_weights()
        return cls(step=0, updates=0, weights=weights, momentum=np.zeros_like(weights), scale=np.zeros_like(weights))


@dataclass(frozen=True)
class Group:
    """Responses to one prompt. A response has one choice for each state of the prompt."""

    prompt: str
    responses: list[str]
    states: Array
    actions: list[list[int]]
    log_probs: Array
    rewards: list[float]


@dataclass(frozen=True)
class Stats:
    """Statistics of one step: mean reward, entropy per choice in nats, and share of choices with a clipped ratio."""

    reward: float
    entropy: float
    clipped: float


def advantages(rewards: list[float]) -> Array:
    """Return the rewards of a group minus their mean, divided by their standard deviation; 0 if all are equal."""
    values = np.asarray(rewards)
    result: Array = (values - values.mean()) / (values.std() + 1e-6)
    return result


def step(state: State, groups: list[Group], settings: Settings) -> tuple[State, Stats]:
    """Run one training step: several epochs of Adam on the clipped objective over all choices of all groups."""
    states = np.concatenate([np.tile(group.states, (len(group.actions), 1)) for group in groups])
    actions = np.concatenate([np.ravel(group.actions) for group in groups])
    old = np.concatenate([np.ravel(group.log_probs) for group in groups])
    advantage = np.concatenate([np.repeat(advantages(group.rewards), len(group.states)) for group in groups])
    taken = np.eye(policy.ACTIONS)[actions]

    weights, momentum, scale, updates = state.weights, state.momentum, state.scale, state.updates
    entropy = clipped = 0.0
    for epoch in range(settings.epochs):
        log_probs = policy.log_probs(weights, states)
        ratio = np.exp((log_probs * taken).sum(axis=1) - old)
        # min(ratio * A, clip(ratio) * A) has no gradient where the ratio exceeds the clip range in the direction of A.
        too_far = np.where(advantage > 0, ratio > 1 + settings.clip, ratio < 1 - settings.clip)
        slope = np.where(too_far, 0.0, ratio * advantage)
        gradient = -states.T @ ((taken - np.exp(log_probs)) * slope[:, None]) / len(actions)

        updates += 1
        momentum = BETAS[0] * momentum + (1 - BETAS[0]) * gradient
        scale = BETAS[1] * scale + (1 - BETAS[1]) * gradient**2
        unbiased = momentum / (1 - BETAS[0] ** updates), scale / (1 - BETAS[1] ** updates)
        weights = weights - settings.learning_rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)

        if epoch == 0:
            entropy = float(-(np.exp(log_probs) * log_probs).sum(axis=1).mean())
        clipped += float(too_far.mean()) / settings.epochs

    reward = float(np.mean([group.rewards for group in groups]))
    after = State(step=state.step + 1, updates=updates, weights=weights, momentum=momentum, scale=scale)
    return after, Stats(reward=reward, entropy=entropy, clipped=clipped)
