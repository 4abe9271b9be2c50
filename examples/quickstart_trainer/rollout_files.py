"""The responses of the policy in files: those of evaluations as SkyRL writes them, and some of each training step."""

from __future__ import annotations

import json
from pathlib import Path

from grpo import Group
from rollouts import Answer, Row


def dump(folder: Path, step: int, rows: list[Row], answers: list[Answer], metrics: dict[str, float]) -> None:
    """Write an evaluation, with the names and fields of SkyRL's ``dump_per_dataset_eval_results``.

    Args:
        folder: The folder of exports.
        step: The step.
        rows: The prompts.
        answers: The responses and their rewards.
        metrics: The metrics of the evaluation.
    """
    target = folder / "dumped_evals" / f"global_step_{step}_evals"
    target.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {}
    for row, (response, reward) in zip(rows, answers, strict=True):
        source = row.get("data_source") or "unknown"
        entry = {
            "input_prompt": row["prompt"][-1]["content"],
            "output_response": response,
            "score": reward,
            "stop_reason": "stop",
            "env_class": row["env_class"],
            "env_extras": {"data_source": source, "reward_spec": row.get("reward_spec")},
            "data_source": source,
        }
        lines.setdefault(source.replace("/", "_"), []).append(json.dumps(entry, ensure_ascii=False))
    lines["aggregated_results"] = [json.dumps(metrics)]
    for name, texts in lines.items():
        (target / f"{name}.jsonl").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def record(groups: list[Group], step: int) -> None:
    """Record responses of a training step in a run of skyrl_modal, which chooses some of them.

    SkyRL's own trainers need no such call.

    Args:
        groups: The responses to each prompt.
        step: The step.
    """
    try:
        from skyrl_modal import log_rollouts
    except ImportError:  # it is no such run
        return
    log_rollouts(
        (
            {"prompt": group.prompt, "response": response, "reward": reward, "stop_reason": "stop"}
            for group in groups
            for response, reward in zip(group.responses, group.rewards, strict=True)
        ),
        step=step,
    )
