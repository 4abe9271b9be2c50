"""Batch sizes that SkyRL refuses (``validate_batch_sizes`` and ``SFTTrainer._validate_batch_parallelism``, 2026)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.resolution.records import EntrypointKind
from skyrl_modal.skyrl.rules.facts import StartValues
from skyrl_modal.skyrl.rules.gpus import group_gpus, uses_reference

_PARALLEL_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")


def find_batch_sizes(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if the batch sizes of a start do not divide."""
    kind = values.start.kind
    problem = None
    if kind in (EntrypointKind.TRAIN, EntrypointKind.FULLY_ASYNC):
        problem = _problem_of_training(values)
    elif kind is EntrypointKind.SFT:
        problem = _problem_of_sft(values)
    if problem is not None:
        yield Finding(
            code="batch-size",
            severity=Severity.ERROR,
            message=f"{values.start.program} refuses its batch sizes: {problem}",
            remedy="Choose sizes that divide.",
        )


def _problem_of_training(values: StartValues) -> str | None:
    train, micro = values.integer("trainer.train_batch_size"), values.integer("trainer.micro_train_batch_size_per_gpu")
    samples = values.integer("generator.n_samples_per_prompt")
    if train is None or micro is None or samples is None or micro < 1:
        return None
    sizes: list[int] = []
    for group in ("policy", "critic") if values.text("trainer.critic.model.path") else ("policy",):
        mini, parallel = values.integer(f"trainer.{group}_mini_batch_size"), _data_parallel(values, group)
        if mini is None or parallel is None:
            return None
        if isinstance(parallel, str):
            return parallel
        problem = _problem_of_group(group, train, mini, micro, samples, parallel)
        if problem is not None:
            return problem
        sizes += [parallel] if group == "policy" else []
    if uses_reference(values):
        parallel = _data_parallel(values, "ref")
        if isinstance(parallel, str):
            return parallel
        sizes += [] if parallel is None else [parallel]
    if train * samples < math.lcm(*sizes):
        return (
            f"train_batch_size {train} x n_samples_per_prompt {samples} is less than {math.lcm(*sizes)}, the least "
            "common multiple of the data parallel sizes"
        )
    return None


def _problem_of_group(group: str, train: int, mini: int, micro: int, samples: int, parallel: int) -> str | None:
    if mini < 1 or train < mini or train % mini:
        return f"train_batch_size {train} is no multiple of {group}_mini_batch_size {mini}"
    mini_per_gpu, train_per_gpu = mini * samples // parallel, train * samples // parallel
    of_gpu = f"{group}_mini_batch_size {mini} x n_samples_per_prompt {samples} on {parallel} data parallel ranks"
    if mini_per_gpu < 1:
        return f"{of_gpu} is less than one sample for each"
    if mini_per_gpu % micro:
        return f"{of_gpu} is {mini_per_gpu} for each, which is no multiple of micro_train_batch_size_per_gpu {micro}"
    if train_per_gpu % mini_per_gpu:
        return f"{of_gpu} is {mini_per_gpu} for each, and {train_per_gpu} samples of a training batch are no multiple"
    return None


def _data_parallel(values: StartValues, group: str) -> int | str | None:
    """Return the data parallel size of a group; a text if the number of GPUs does not divide; None if not known."""
    world = group_gpus(values, group)
    if world is None:
        return None
    if values.text("trainer.strategy") == "megatron" and group != "critic":
        sizes = [values.integer(f"trainer.{group}.megatron_config.{name}") for name in _PARALLEL_SIZES]
        return _divide(f"the {group}", world, sizes)
    parallel = values.integer(f"trainer.{group}.sequence_parallel_size")
    return None if not parallel else max(world // parallel, 1)


def _divide(what: str, world: int, sizes: list[int | None]) -> int | str | None:
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or min(known) < 1:
        return None
    product = math.prod(known)
    if world % product:
        return f"the {world} GPUs of {what} are no multiple of {product}, the product of its parallel sizes"
    return world // product


def _problem_of_sft(values: StartValues) -> str | None:
    batch, micro = values.integer("batch_size"), values.integer("micro_train_batch_size_per_gpu")
    nodes, gpus = values.integer("placement.num_nodes"), values.integer("placement.num_gpus_per_node")
    if batch is None or micro is None or nodes is None or gpus is None or micro < 1 or nodes * gpus < 1:
        return None
    parallel: int | str | None = nodes * gpus
    if values.text("strategy") == "megatron":
        sizes = [values.integer(f"megatron_config.{name}") for name in _PARALLEL_SIZES]
        parallel = _divide("training", nodes * gpus, sizes)
    if parallel is None or isinstance(parallel, str):
        return parallel
    if values.flag("use_sequence_packing"):  # batch_size counts examples, which fill the ranks' bins
        return f"batch_size {batch} is less than the {parallel} data parallel ranks" if batch < parallel else None
    if values.text("strategy") == "megatron":
        parallel *= values.integer("megatron_config.context_parallel_size") or 1  # not counted by this check of SkyRL
    if batch % parallel:
        return f"batch_size {batch} is no multiple of the {parallel} data parallel ranks"
    if batch // parallel % micro:
        return (
            f"batch_size {batch} is {batch // parallel} for each of {parallel} data parallel ranks, which is no "
            f"multiple of micro_train_batch_size_per_gpu {micro}"
        )
    return None
