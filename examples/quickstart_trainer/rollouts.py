"""Responses of the policy and their rewards, in this process or in Ray actors. Both have the same results."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import policy
from grpo import Group
from policy import Array

ROLLOUT_ACTORS = 8

Row = dict[str, Any]
#: A response and its reward.
Answer = tuple[str, float]


class Rollouts(Protocol):
    """What the training needs."""

    def sample(self, weights: Array, rows: list[Row], samples: int, seed: tuple[int, int]) -> list[Group]:
        """Return a group of responses to each prompt."""

    def evaluate(self, weights: Array, rows: list[Row]) -> list[Answer]:
        """Return the most likely response to each prompt, and its reward."""


class Sampler:
    """Samples responses, and computes their rewards with the environment.

    Args:
        root: The SkyRL checkout. A Ray worker has the environment of Ray's processes, so that it is an argument. The
            folder of this module is not: Ray adds the folder of the driver's script to the import path.
    """

    def __init__(self, root: str) -> None:
        sys.path.insert(0, str(Path(root) / "skyrl-gym"))
        import skyrl_gym

        self._make = skyrl_gym.make

    def node(self) -> str:
        """Return the id of the actor's node."""
        import ray

        node_id: str = ray.get_runtime_context().get_node_id()
        return node_id

    def sample(self, weights: Array, rows: list[Row], samples: int, seed: tuple[int, int]) -> list[Group]:
        """Sample responses to each prompt. The random numbers depend on the seed and the row's index only."""
        groups = []
        for row in rows:
            numbers, states = policy.read(_problem(row))
            log_probs = policy.log_probs(weights, states)
            noise = np.random.default_rng((*seed, row["extra_info"]["index"])).gumbel(size=(samples, *log_probs.shape))
            actions = (log_probs + noise).argmax(axis=-1)
            responses = [policy.write(numbers, chosen) for chosen in actions.tolist()]
            groups.append(
                Group(
                    prompt=_problem(row),
                    responses=responses,
                    states=states,
                    actions=actions.tolist(),
                    log_probs=np.take_along_axis(log_probs[None], actions[..., None], axis=-1)[..., 0],
                    rewards=[self._reward(row, response) for response in responses],
                )
            )
        return groups

    def evaluate(self, weights: Array, rows: list[Row]) -> list[Answer]:
        """Return the most likely response to each prompt, and its reward."""
        answers = []
        for row in rows:
            numbers, states = policy.read(_problem(row))
            response = policy.write(numbers, policy.log_probs(weights, states).argmax(axis=-1).tolist())
            answers.append((response, self._reward(row, response)))
        return answers

    def _reward(self, row: Row, response: str) -> float:
        with self._make(row["env_class"], extras=row) as env:
            env.init(row["prompt"])
            return float(env.step(response)["reward"])


class RayRollouts:
    """Samplers in actors, which are distributed over the nodes of the cluster.

    Args:
        root: The SkyRL checkout.
    """

    def __init__(self, root: str) -> None:
        import ray

        self._ray = ray
        actor = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(Sampler)
        cores = int(ray.cluster_resources().get("CPU", 1))
        self._actors = [actor.remote(root) for _ in range(max(1, min(cores, ROLLOUT_ACTORS)))]
        nodes = sum(node["Alive"] for node in ray.nodes())
        print(f"Ray: {nodes} node(s), {len(self._actors)} rollout actor(s)", flush=True)
        if nodes > 1:
            for node, count in Counter(ray.get([each.node.remote() for each in self._actors])).items():
                print(f"node {node}: {count} rollout actor(s)", flush=True)

    def sample(self, weights: Array, rows: list[Row], samples: int, seed: tuple[int, int]) -> list[Group]:
        """Return a group of responses to each prompt, in the order of the rows."""
        shared = self._ray.put(weights)
        shards = zip(self._actors, _shards(rows, len(self._actors)), strict=True)
        parts = self._ray.get([actor.sample.remote(shared, shard, samples, seed) for actor, shard in shards])
        return [group for part in parts for group in part]

    def evaluate(self, weights: Array, rows: list[Row]) -> list[Answer]:
        """Return the most likely response to each prompt, and its reward."""
        shards = zip(self._actors, _shards(rows, len(self._actors)), strict=True)
        parts = self._ray.get([actor.evaluate.remote(weights, shard) for actor, shard in shards])
        return [answer for part in parts for answer in part]


def create(root: str, *, use_ray: bool) -> Rollouts:
    """Return rollouts in actors of the connected cluster, or in this process."""
    return RayRollouts(root) if use_ray else Sampler(root)


def read_rows(paths: list[str]) -> list[Row]:
    """Read a dataset of JSON lines."""
    rows: list[Row] = []
    for path in paths:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    return rows


def _problem(row: Row) -> str:
    text: str = row["prompt"][-1]["content"]
    return text


def _shards(rows: list[Any], count: int) -> list[list[Any]]:
    bounds = np.linspace(0, len(rows), count + 1).astype(int).tolist()
    return [rows[start:end] for start, end in pairwise(bounds)]
