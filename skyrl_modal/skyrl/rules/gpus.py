"""The GPUs that a start needs, against those that the run requests."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attrs import frozen

from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.resolution.records import EntrypointKind
from skyrl_modal.skyrl.rules.facts import StartValues

_ENGINE = "generator.inference_engine."
_ENGINE_SIZES = ("num_engines", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@frozen
class WantedGpus:
    """The GPUs that the parts of a start need, by their names. Parts that share GPUs are listed once."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return " + ".join(f"{count} for {name}" for name, count in self.parts.items())


def wanted_gpus(values: StartValues) -> WantedGpus | None:
    """Return the GPUs that a start needs; None if this is not known."""
    kind = values.start.kind
    if values.start.has_own_placement:
        return None
    if kind is EntrypointKind.SFT:
        return _known({"training": _product(values, "placement.num_nodes", "placement.num_gpus_per_node")})
    if kind in (EntrypointKind.GENERATE, EntrypointKind.SERVE):
        return _known({"the engines": engine_gpus(values)})
    if kind is EntrypointKind.TINKER and not _has_explicit_placement(values):
        return None  # the server computes its own defaults
    if kind not in (EntrypointKind.TRAIN, EntrypointKind.FULLY_ASYNC, EntrypointKind.TINKER):
        return None
    policy = group_gpus(values, "policy")
    if values.flag("trainer.fully_async.simulate_training"):
        policy = 0
    if values.flag("trainer.placement.colocate_all"):
        return _known({"policy and engines together": policy})
    parts = {"the policy": policy, "the engines": engine_gpus(values)}
    if uses_reference(values) and not values.flag("trainer.placement.colocate_policy_ref"):
        parts["the reference model"] = group_gpus(values, "ref")
    if values.text("trainer.critic.model.path"):
        parts["the critic"] = group_gpus(values, "critic")
    return _known(parts)


def _known(parts: dict[str, int | None]) -> WantedGpus | None:
    counts = {name: count for name, count in parts.items() if count is not None}
    return WantedGpus({name: count for name, count in counts.items() if count}) if len(counts) == len(parts) else None


def _has_explicit_placement(values: StartValues) -> bool:
    keys = ("trainer.placement.policy_num_gpus_per_node", f"{_ENGINE}num_engines")
    return all(key in values.start.overrides for key in keys)


def _product(values: StartValues, *keys: str) -> int | None:
    numbers = [values.integer(key) for key in keys]
    return None if None in numbers else math.prod(number for number in numbers if number is not None)


def group_gpus(values: StartValues, group: str) -> int | None:
    """Return the GPUs of ``policy``, ``ref`` or ``critic``."""
    return _product(values, f"trainer.placement.{group}_num_nodes", f"trainer.placement.{group}_num_gpus_per_node")


def engine_gpus(values: StartValues) -> int | None:
    """Return the GPUs of the inference engines that the start itself runs."""
    if values.flag(f"{_ENGINE}run_engines_locally") is False or values[f"{_ENGINE}external_server_urls"]:
        return 0
    return _product(values, *(f"{_ENGINE}{name}" for name in _ENGINE_SIZES))


def uses_reference(values: StartValues) -> bool:
    """Return whether a reference model is loaded."""
    keys = ("trainer.algorithm.use_kl_loss", "trainer.algorithm.use_kl_in_reward")
    return any(values.flag(key) for key in keys)


def find_missing_gpus(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if a start needs another number of GPUs than the run requests."""
    run, wanted = values.run, wanted_gpus(values)
    if run.gpus is None or wanted is None or not wanted.total:
        return
    requested = run.gpus * run.nodes
    of_run = f"the run requests {requested}" + (f" ({run.nodes} nodes with {run.gpus})" if run.nodes > 1 else "")
    if wanted.total > requested:
        yield Finding(
            code="gpus-exceed-request",
            severity=Severity.ERROR,
            message=f"{values.start.program} needs {wanted.total} GPUs ({wanted}), and {of_run}",
            remedy="Request them with gpu= and nodes=, or reduce the numbers in the command. Without them the start "
            "fails after 180 s (SKYRL_RAY_PG_TIMEOUT_IN_S).",
        )
    elif wanted.total < requested:
        yield Finding(
            code="gpus-unused",
            severity=Severity.NOTE,
            message=f"{values.start.program} needs {wanted.total} GPUs ({wanted}), and {of_run}",
            remedy="Request fewer, unless other programs of the command use them.",
        )


def find_colocated_difference(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if policy and engines share GPUs, but not all of them (``validate_cfg``)."""
    if values.start.kind not in (EntrypointKind.TRAIN, EntrypointKind.FULLY_ASYNC) or values.start.has_own_placement:
        return
    if not values.flag("trainer.placement.colocate_all") or values.flag("trainer.fully_async.simulate_training"):
        return
    policy, engines = group_gpus(values, "policy"), engine_gpus(values)
    if policy is not None and engines is not None and policy != engines:
        yield Finding(
            code="gpus-colocated-differ",
            severity=Severity.ERROR,
            message=f"{values.start.program} shares GPUs between policy and engines (colocate_all), but the policy has "
            f"{policy} and the engines have {engines}",
            remedy="Choose num_engines, tensor_parallel_size, pipeline_parallel_size and data_parallel_size so that "
            "their product is policy_num_nodes x policy_num_gpus_per_node.",
        )
