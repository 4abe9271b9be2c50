"""The training loop: rollouts, one GRPO step, metrics and checkpoints, controlled by SkyRL's configuration."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import checkpoint
import grpo
import moments
import numpy as np
import rollout_files
import rollouts
from grpo import Settings, State
from prompts import PromptLoader
from skyrl_modules import ROOT, QuickstartConfig, Tracking, get_config_as_dict


def train(arguments: list[str], *, use_ray: bool) -> None:
    """Train until the configured number of steps is reached, including those of earlier attempts.

    Args:
        arguments: ``key=value`` arguments. The last one of a key wins.
        use_ray: Whether the rollouts are made in actors of the connected cluster.
    """
    Trainer(QuickstartConfig.from_cli_overrides(arguments), use_ray=use_ray).train()


class Trainer:
    """One training.

    Args:
        config: SkyRL's configuration.
        use_ray: Whether the rollouts are made in actors of the connected cluster.
    """

    def __init__(self, config: QuickstartConfig, *, use_ray: bool) -> None:
        self._config = config
        options = config.trainer
        self._options = options
        self._settings = Settings(
            learning_rate=options.policy.optimizer_config.lr,
            epochs=options.update_epochs_per_batch,
            clip=options.algorithm.eps_clip_low,
        )
        self._ranks = options.placement.policy_num_nodes * options.placement.policy_num_gpus_per_node
        self._ckpt_path = Path(options.ckpt_path)
        self._loader = PromptLoader(
            rollouts.read_rows(list(config.data.train_data)), options.train_batch_size, options.seed
        )
        self._validation = rollouts.read_rows(list(config.data.val_data)) if config.data.val_data else []
        self._rollouts = rollouts.create(str(ROOT), use_ray=use_ray)
        self._state = self._first_state()
        self._steps = len(self._loader) * options.epochs
        if options.max_training_steps is not None:
            self._steps = min(self._steps, options.max_training_steps)
        self._tracker = Tracking(options.project_name, options.run_name, options.logger, config, options.tags)

    def _first_state(self) -> State:
        options = self._options
        folder = checkpoint.find(
            self._ckpt_path, mode=options.resume_mode, path=options.resume_path, interval=options.ckpt_interval
        )
        if folder is None:
            return State.initial()
        state, data = checkpoint.load(folder, self._ranks)
        if data is not None:
            self._loader.load_state_dict(data)
        return state

    def train(self) -> None:
        """Train to the last step."""
        options = self._options
        if options.eval_interval > 0 and options.eval_before_train and self._validation:
            self._log(self._evaluate())
        while self._state.step < self._steps:
            for batch in self._loader:
                self._train_step(batch)
                if self._state.step >= self._steps:
                    break
        self._tracker.finish()

    def _train_step(self, batch: list[rollouts.Row]) -> None:
        options, begin = self._options, time.monotonic()
        epoch = self._state.step // len(self._loader)
        number = self._state.step + 1
        samples = self._config.generator.n_samples_per_prompt
        groups = self._rollouts.sample(self._state.weights, batch, samples, (options.seed, number))
        self._state, stats = grpo.step(self._state, groups, self._settings)
        metrics = {
            "reward/avg_raw_reward": stats.reward,
            f"reward/avg_pass_at_{samples}": float(np.mean([max(group.rewards) > 0 for group in groups])),
            "policy/policy_entropy": stats.entropy,
            "policy/ppo_clip_ratio": stats.clipped,
            "policy/policy_lr": self._settings.learning_rate,
            "trainer/epoch": epoch,
            "trainer/global_step": number,
        }
        is_last = number >= self._steps
        if options.eval_interval > 0 and self._validation and (is_last or number % options.eval_interval == 0):
            metrics |= self._evaluate()
        rollout_files.record(groups, number)
        # SkyRL logs a step after its checkpoint. A kill between both then leaves a checkpoint without a row of metrics.
        self._log({**metrics, "timing/step": time.monotonic() - begin})
        interval = options.ckpt_interval
        if interval > 0 and (is_last or number % interval == 0 or number % len(self._loader) == 0):
            self._save()

    def _evaluate(self) -> dict[str, float]:
        answers = self._rollouts.evaluate(self._state.weights, self._validation)
        metrics = {"eval/all/avg_score": float(np.mean([reward for _, reward in answers]))}
        if self._options.dump_eval_results:
            rollout_files.dump(Path(self._options.export_path), self._state.step, self._validation, answers, metrics)
        return metrics

    def _log(self, metrics: dict[str, Any]) -> None:
        moments.reached(f"step {self._state.step} before its metrics")
        assert all(math.isfinite(value) for value in metrics.values()), metrics
        self._tracker.log(metrics, step=self._state.step, commit=True)
        moments.reached(f"step {self._state.step} after its metrics")

    def _save(self) -> None:
        config = get_config_as_dict(self._config)
        data = self._loader.state_dict()
        checkpoint.save(self._ckpt_path, self._state, data=data, config=config, ranks=self._ranks)
        moments.reached(f"step {self._state.step} after its checkpoint")
        checkpoint.remove_old(self._ckpt_path, self._options.max_ckpts_to_keep)
