"""Train the policy with GRPO on Ray actors in skyrl_gym's gsm8k environment, resuming from the latest checkpoint.

    python train.py --run-dir /root/data/quickstart/my_run --steps 60

`RUN_DIR/dataset/` is written by prepare.py. This script writes `RUN_DIR/ckpts/` and `RUN_DIR/metrics.jsonl`. Their
contents are the same whether or not the training was killed and resumed: every random choice depends on the seed and
the step only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import checkpoint
import grpo
import numpy as np
import policy
import ray
from grpo import Group, State, Stats
from policy import Array

PROMPTS = 16
SAMPLES = 8
ROLLOUT_ACTORS = 8
CHECKPOINT_INTERVAL = 10

Row = dict[str, Any]


@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
class Rollout:
    """Samples responses with a copy of the weights, and computes their rewards with the environment."""

    def __init__(self, gym: str) -> None:
        # Workers inherit the environment of the raylet, not the driver's, so skyrl_gym's path is an argument. It is
        # the same on every node. The folder of this script needs no argument: Ray adds it to the workers' sys.path.
        sys.path.insert(0, gym)
        import skyrl_gym

        self.make = skyrl_gym.make

    def node(self) -> str:
        """Return the id of the actor's node."""
        node_id: str = ray.get_runtime_context().get_node_id()
        return node_id

    def sample(self, weights: Array, rows: list[tuple[int, Row]], seed: tuple[int, int]) -> list[Group]:
        """Sample SAMPLES responses to each prompt. The random numbers depend on the seed and the row's index only."""
        groups = []
        for index, row in rows:
            numbers, states = policy.read(_problem(row))
            log_probs = policy.log_probs(weights, states)
            noise = np.random.default_rng((*seed, index)).gumbel(size=(SAMPLES, *log_probs.shape))
            actions = (log_probs + noise).argmax(axis=-1)
            groups.append(
                Group(
                    states=states,
                    actions=actions.tolist(),
                    log_probs=np.take_along_axis(log_probs[None], actions[..., None], axis=-1)[..., 0],
                    rewards=[self._reward(row, policy.write(numbers, chosen)) for chosen in actions.tolist()],
                )
            )
        return groups

    def evaluate(self, weights: Array, rows: list[Row]) -> list[float]:
        """Return the reward of the most likely response to each prompt."""
        rewards = []
        for row in rows:
            numbers, states = policy.read(_problem(row))
            response = policy.write(numbers, policy.log_probs(weights, states).argmax(axis=-1).tolist())
            rewards.append(self._reward(row, response))
        return rewards

    def _reward(self, row: Row, response: str) -> float:
        with self.make(row["env_class"], extras=row) as env:
            env.init(row["prompt"])
            return float(env.step(response)["reward"])


# The learner works only while the rollout actors wait for it, so it reserves no CPU.
@ray.remote(num_cpus=0)
class Learner:
    """Holds the weights and the optimizer."""

    def __init__(self, state: State) -> None:
        self.state = state

    def step(self, *shards: list[Group]) -> tuple[State, Stats]:
        """Train on one batch, which has one shard from each rollout actor."""
        self.state, stats = grpo.step(self.state, [group for shard in shards for group in shard])
        return self.state, stats


class StopRequest:
    """Records SIGINT and SIGTERM, which are handled after the current step."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


class Metrics:
    """The file metrics.jsonl, with one line for each step up to the current state."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            # Steps after the last checkpoint are repeated, and the last line may be incomplete.
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Append a line in one write."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def _problem(row: Row) -> str:
    text: str = row["prompt"][-1]["content"]
    return text


def _read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _shards(rows: list[Any], count: int) -> list[list[Any]]:
    bounds = np.linspace(0, len(rows), count + 1).astype(int).tolist()
    return [rows[start:end] for start, end in pairwise(bounds)]


def train(run_dir: Path, steps: int, seed: int) -> int:
    """Train until `steps` steps are done, including those of earlier runs. Return the exit code."""
    dataset = _read(run_dir / "dataset" / "train.jsonl")
    validation = _read(run_dir / "dataset" / "validation.jsonl")
    ckpts = run_dir / "ckpts"
    found = checkpoint.latest(ckpts)
    state = checkpoint.load(found) if found else State.initial()
    saved = state.step
    print(f"resumed from {found}" if found else "no checkpoint yet: training from the start", flush=True)

    ray.init(address=os.environ["RAY_ADDRESS"], logging_level=logging.WARNING)
    # After ray.init, which installs its own SIGTERM handler.
    stop = StopRequest()
    cores = int(ray.cluster_resources().get("CPU", 1))
    gym = str(Path(os.environ["SKYRL_REPO_ROOT"]) / "skyrl-gym")
    actors = [Rollout.remote(gym) for _ in range(max(1, min(cores, ROLLOUT_ACTORS)))]
    learner = Learner.remote(state)
    nodes = sum(node["Alive"] for node in ray.nodes())
    print(f"Ray at {os.environ['RAY_ADDRESS']}: {nodes} node(s), {len(actors)} rollout actor(s), 1 learner", flush=True)
    if nodes > 1:
        for node, count in Counter(ray.get([actor.node.remote() for actor in actors])).items():
            print(f"node {node}: {count} rollout actor(s)", flush=True)

    def evaluate() -> float:
        shards = zip(actors, _shards(validation, len(actors)), strict=True)
        parts = ray.get([actor.evaluate.remote(state.weights, shard) for actor, shard in shards])
        return float(np.mean(np.concatenate(parts)))

    metrics = Metrics(run_dir / "metrics.jsonl", state.step)
    origin = {
        "run_id": os.environ.get("SKYRL_RUN_ID"),
        "attempt": os.environ.get("SKYRL_ATTEMPT"),
        "resumed_from": found.name if found else None,
    }
    print(f"validation reward at step {state.step}: {evaluate():.3f}", flush=True)
    try:
        while state.step < steps and stop.signal is None:
            begin = time.monotonic()
            number = state.step + 1
            picked = np.random.default_rng((seed, number)).choice(len(dataset), PROMPTS, replace=False).tolist()
            weights = ray.put(state.weights)
            shards = _shards([(index, dataset[index]) for index in picked], len(actors))
            groups = [a.sample.remote(weights, s, (seed, number)) for a, s in zip(actors, shards, strict=True)]
            state, stats = ray.get(learner.step.remote(*groups))
            seconds = time.monotonic() - begin
            metrics.add({"step": state.step, **vars(stats), "seconds": round(seconds, 4), **origin})
            print(
                f"step {state.step:3d}/{steps}  reward {stats.reward:.3f}  entropy {stats.entropy:.3f}"
                f"  clipped {stats.clipped:.3f}  {seconds * 1000:.0f} ms",
                flush=True,
            )
            if state.step % CHECKPOINT_INTERVAL == 0:
                checkpoint.save(ckpts, state)
                saved = state.step
    finally:
        # Also if a step failed, so that the previous steps are kept.
        if state.step > saved:
            print(f"saved {checkpoint.save(ckpts, state)}", flush=True)
    if stop.signal is not None:
        print(f"stopped by {signal.Signals(stop.signal).name} after step {state.step}", flush=True)
        return 128 + stop.signal
    print(f"validation reward at step {state.step}: {evaluate():.3f}", flush=True)
    return 0


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument(
        "--steps", type=int, required=True, help="total number of steps, including those of earlier runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.exit(train(args.run_dir, args.steps, args.seed))


if __name__ == "__main__":
    main()
