"""GRPO: advantages relative to the group of one prompt, a clipped ratio objective, Adam. No Ray in here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import policy
from policy import Array

LEARNING_RATE = 0.015
BETAS = (0.9, 0.99)
CLIP = 0.2
EPOCHS = 4


@dataclass(frozen=True)
class State:
    """All that training needs to go on from here."""

    step: int
    updates: int
    weights: Array
    momentum: Array
    scale: Array

    @classmethod
    def initial(cls) -> State:
        """The state before the first step."""
        weights = policy.initial_weights()
        return cls(step=0, updates=0, weights=weights, momentum=np.zeros_like(weights), scale=np.zeros_like(weights))


@dataclass(frozen=True)
class Group:
    """The responses to one prompt. A response has as many choices as the prompt has states."""

    states: Array
    actions: list[list[int]]
    log_probs: Array
    rewards: list[float]


@dataclass(frozen=True)
class Stats:
    """What one step did: mean reward, entropy per choice (nats), share of choices whose ratio was clipped."""

    reward: float
    entropy: float
    clipped: float


def advantages(rewards: list[float]) -> Array:
    """Rewards of one group as deviations from its mean, in its standard deviations; 0 where all are alike."""
    values = np.asarray(rewards)
    result: Array = (values - values.mean()) / (values.std() + 1e-6)
    return result


def step(state: State, groups: list[Group]) -> tuple[State, Stats]:
    """One training step: some epochs of Adam on the clipped objective over all choices of all groups."""
    states = np.concatenate([np.tile(group.states, (len(group.actions), 1)) for group in groups])
    actions = np.concatenate([np.ravel(group.actions) for group in groups])
    old = np.concatenate([np.ravel(group.log_probs) for group in groups])
    advantage = np.concatenate([np.repeat(advantages(group.rewards), len(group.states)) for group in groups])
    taken = np.eye(policy.ACTIONS)[actions]

    weights, momentum, scale, updates = state.weights, state.momentum, state.scale, state.updates
    entropy = clipped = 0.0
    for epoch in range(EPOCHS):
        log_probs = policy.log_probs(weights, states)
        ratio = np.exp((log_probs * taken).sum(axis=1) - old)
        # min(ratio * A, clip(ratio) * A) has no gradient where the ratio has gone too far in A's own direction.
        too_far = np.where(advantage > 0, ratio > 1 + CLIP, ratio < 1 - CLIP)
        slope = np.where(too_far, 0.0, ratio * advantage)
        gradient = -states.T @ ((taken - np.exp(log_probs)) * slope[:, None]) / len(actions)

        updates += 1
        momentum = BETAS[0] * momentum + (1 - BETAS[0]) * gradient
        scale = BETAS[1] * scale + (1 - BETAS[1]) * gradient**2
        unbiased = momentum / (1 - BETAS[0] ** updates), scale / (1 - BETAS[1] ** updates)
        weights = weights - LEARNING_RATE * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)

        if epoch == 0:
            entropy = float(-(np.exp(log_probs) * log_probs).sum(axis=1).mean())
        clipped += float(too_far.mean()) / EPOCHS

    reward = float(np.mean([group.rewards for group in groups]))
    after = State(step=state.step + 1, updates=updates, weights=weights, momentum=momentum, scale=scale)
    return after, Stats(reward=reward, entropy=entropy, clipped=clipped)
