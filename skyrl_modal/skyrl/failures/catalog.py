"""All rules about failures."""

from __future__ import annotations

from skyrl_modal.skyrl.failures.gpu_rules import COMMUNICATION_RULES, GPU_RULES
from skyrl_modal.skyrl.failures.result_rules import RESULT_RULES
from skyrl_modal.skyrl.failures.rule import FailureRule
from skyrl_modal.skyrl.failures.system_rules import MACHINE_RULES, RAY_RULES, UV_RULES
from skyrl_modal.skyrl.failures.training_rules import CHECKPOINT_RULES, CONFIGURATION_RULES, DATA_RULES

#: The groups of rules, with the headings of the page about them.
GROUPS: tuple[tuple[str, tuple[FailureRule, ...]], ...] = (
    ("Configuration and training", CONFIGURATION_RULES),
    ("Data and models", DATA_RULES),
    ("Checkpoints", CHECKPOINT_RULES),
    ("GPUs and vLLM", GPU_RULES),
    ("Communication between GPUs", COMMUNICATION_RULES),
    ("Memory, disks and programs", MACHINE_RULES),
    ("Ray", RAY_RULES),
    ("uv", UV_RULES),
    ("The platform and the launcher", RESULT_RULES),
)
#: All rules. Of two rules that one line matches, the first one counts.
RULES: tuple[FailureRule, ...] = tuple(rule for _, rules in GROUPS for rule in rules)
