"""All rules, and the findings of a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from skyrl_modal.dataclass import replace
from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.config_schema import ConfigSchema
from skyrl_modal.skyrl.resolution.records import TRAINING_KINDS, Resolution, ResolutionMethod, Start
from skyrl_modal.skyrl.rules import batches, checkpoints, credentials, gpus, paths, programs
from skyrl_modal.skyrl.rules.facts import RunFacts, StartValues

Rule = Callable[[StartValues], Iterator[Finding]]

#: The rules, in the order in which their findings are shown.
RULES: tuple[Rule, ...] = (
    gpus.find_missing_gpus,
    gpus.find_colocated_difference,
    batches.find_batch_sizes,
    programs.find_unknown_keys,
    credentials.find_missing_wandb_key,
    credentials.find_missing_hub_token,
    programs.find_missing_env_files,
    programs.find_missing_uv,
    programs.find_missing_megatron,
    paths.find_missing_data,
    paths.find_missing_model,
    paths.find_lost_checkpoints,
    paths.find_checkpoints_in_buckets,
    checkpoints.find_resume_off,
    checkpoints.find_no_checkpoints,
    checkpoints.find_long_interval,
    checkpoints.find_existing_checkpoints,
    checkpoints.find_kept_checkpoints,
    paths.find_lost_exports,
    paths.find_lost_logs,
    paths.find_lost_database,
    paths.find_unshared_adapters,
    credentials.find_lost_tracker_files,
    credentials.find_repeated_download,
)


def _as_certain_as(finding: Finding, start: Start) -> Finding:
    """Return a finding about a start. If the text was only read, the start may depend on a condition: no error."""
    if start.method is ResolutionMethod.PARSED and finding.severity is Severity.ERROR:
        return replace(finding, severity=Severity.WARNING)
    return finding


def find_in_starts(resolution: Resolution, run: RunFacts, schema: ConfigSchema) -> Iterator[Finding]:
    """Yield the findings about the entrypoints that a command starts, each once.

    Args:
        resolution: What the command starts.
        run: The run.
        schema: The configuration of the checkout.
    """
    yield from dict.fromkeys(finding for _, finding in find_by_start(resolution, run, schema))


def find_by_start(resolution: Resolution, run: RunFacts, schema: ConfigSchema) -> Iterator[tuple[int, Finding]]:
    """Yield the findings about each entrypoint, with the number of its start.

    Args:
        resolution: What the command starts.
        run: The run.
        schema: The configuration of the checkout.
    """
    for number, start in enumerate(resolution.starts):
        if start not in resolution.entrypoints:
            continue
        values = StartValues(start, run, resolution.starts[:number], schema)
        for rule in RULES:
            for found in rule(values):
                yield number, _as_certain_as(found, start)


def checkpoint_folders(resolution: Resolution, run: RunFacts, schema: ConfigSchema) -> tuple[str, ...]:
    """Return the folders on volumes that the trainers of a command write checkpoints to."""
    values = [StartValues(start, run, (), schema) for start in resolution.entrypoints if start.kind in TRAINING_KINDS]
    return _kept_folders(run, map(paths.checkpoint_folder, values))


def export_folders(resolution: Resolution, run: RunFacts, schema: ConfigSchema) -> tuple[str, ...]:
    """Return the folders on volumes that the trainers of a command write evaluations to."""
    values = [StartValues(start, run, (), schema) for start in resolution.entrypoints]
    return _kept_folders(run, map(paths.evaluation_folder, values))


def _kept_folders(run: RunFacts, folders: Iterable[str | None]) -> tuple[str, ...]:
    known = [folder for folder in folders if folder is not None]
    return tuple(dict.fromkeys(folder for folder in known if run.is_kept(folder) and not run.is_in_bucket(folder)))
