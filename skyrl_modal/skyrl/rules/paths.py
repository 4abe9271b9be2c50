"""Paths that a start reads or writes, and that are lost at the end of the run or absent at its start."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator

from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.resolution.records import TRAINING_KINDS, EntrypointKind, Start
from skyrl_modal.skyrl.rules.facts import KEPT_LOG_FOLDER, StartValues
from skyrl_modal.skyrl.rules.gpus import group_gpus
from skyrl_modal.spec.fields import is_below

_WITH_EVALUATION = frozenset({EntrypointKind.TRAIN, EntrypointKind.FULLY_ASYNC, EntrypointKind.GENERATE})
_DATA_ENDINGS = (".parquet", ".json", ".jsonl")
#: Options with which scripts that prepare data receive the folder to write to.
_OUTPUT_FLAGS = ("output_dir", "output-dir", "local_dir", "local-dir", "output", "output_path", "save_dir", "out_dir")
_DATABASE_PREFIX = "sqlite:///"
#: The last parts of default paths, which name no experiment.
_DEFAULT_NAMES = frozenset({"", ".", "ckpts", "checkpoints", "exports", "hf_exports", "skyrl_checkpoints"})


def writes_checkpoints(values: StartValues) -> bool | None:
    """Return whether a start writes checkpoints of its training; None if it is not known."""
    if values.start.kind not in TRAINING_KINDS or not values.start.writes_results:
        return False
    if values.start.kind is EntrypointKind.SFT and values.flag("dummy_run_full_ctx"):
        return False
    interval = values.integer(f"{values.prefix}ckpt_interval")
    return None if interval is None else interval > 0


def checkpoint_folder(values: StartValues) -> str | None:
    """Return the folder that a start writes checkpoints to; None for none, or if it is not known."""
    if values.start.kind is EntrypointKind.TINKER:
        return values.start.flags.get("checkpoints-base", "/tmp/skyrl_checkpoints")
    return values.path(f"{values.prefix}ckpt_path") or None if writes_checkpoints(values) else None


def evaluation_folder(values: StartValues) -> str | None:
    """Return the folder below which a start writes its evaluations; None for none, or if it is not known."""
    if values.start.kind not in _WITH_EVALUATION or not values.start.writes_results:
        return None
    return _export_folder(values) or None if values.flag("trainer.dump_eval_results") is not False else None


def find_lost_checkpoints(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if checkpoints are written to no volume."""
    folder = checkpoint_folder(values)
    if folder is not None and not values.run.is_kept(folder):
        option = f"{values.prefix}ckpt_path="
        if values.start.kind is EntrypointKind.TINKER:
            option = "--checkpoints-base "
        yield _lost(values, "ckpt-path", "writes its checkpoints", folder, option, "ckpts")


def find_checkpoints_in_buckets(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if checkpoints are written to a bucket."""
    folder = checkpoint_folder(values)
    if folder is not None and values.run.is_in_bucket(folder):
        yield Finding(
            code="ckpt-bucket",
            severity=Severity.WARNING,
            message=f"{values.start.program} writes its checkpoints to {folder}, in a bucket: object stores have no "
            "files that are renamed or appended to, and checkpoints are listed and resumed from volumes only",
            remedy="Write them to a volume, and copy complete ones to the bucket.",
        )


def find_lost_exports(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if evaluations, exports of the model or dumped batches are written to no volume."""
    if not values.start.writes_results:
        return
    reasons = list(_reasons_for_exports(values))
    folder = _export_folder(values) if reasons else None
    if folder and not values.run.is_kept(folder):
        action = f"writes {' and '.join(reasons)}"
        yield _lost(values, "export-path", action, folder, f"{values.prefix}export_path=", "exports")


def _export_folder(values: StartValues) -> str | None:
    folder = values.path(f"{values.prefix}export_path")
    if folder == "" and values.start.kind is EntrypointKind.SFT:  # ckpt_path/hf_exports
        return values.path("ckpt_path")
    return folder


def _reasons_for_exports(values: StartValues) -> Iterator[str]:
    kind = values.start.kind
    if kind in _WITH_EVALUATION and values.flag("trainer.dump_eval_results"):
        interval = values.integer("trainer.eval_interval") or 0
        if (kind is EntrypointKind.GENERATE or interval > 0) and values.paths("data.val_data"):
            yield "its evaluations"
    if kind in TRAINING_KINDS and (values.integer(f"{values.prefix}hf_save_interval") or 0) > 0:
        yield "the model"
    if kind in _WITH_EVALUATION and values.flag("trainer.dump_data_batch"):
        yield "its batches"


def find_lost_logs(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if the infra log is neither in the folder that a run keeps, nor on a volume."""
    folder = values.path("trainer.log_path") if values.start.kind in _WITH_EVALUATION else None
    if folder and not is_below(posixpath.normpath(folder), KEPT_LOG_FOLDER) and not values.run.is_kept(folder):
        yield Finding(
            code="log-path",
            severity=Severity.WARNING,
            message=f"{values.start.program} writes the logs of its engines and workers to {folder}, which is on no "
            "writable volume",
            remedy=f"Leave out trainer.log_path: the run keeps {KEPT_LOG_FOLDER}.",
            overrides=(f"trainer.log_path={KEPT_LOG_FOLDER}",),
        )


def find_unshared_adapters(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if LoRA adapters are exchanged through a folder that several nodes do not share."""
    if values.run.nodes < 2 or values.start.kind not in (EntrypointKind.TRAIN, EntrypointKind.FULLY_ASYNC):
        return
    merges = values.flag("trainer.policy.megatron_config.lora_config.merge_lora")
    is_merged = values.text("trainer.strategy") == "megatron" and merges is not False
    folder = values.path("trainer.policy.model.lora.lora_sync_path")
    needs_nodes = (group_gpus(values, "policy") or 0) > (values.run.gpus or 0)
    if is_merged or not needs_nodes or not (values.integer("trainer.policy.model.lora.rank") or 0) or not folder:
        return
    if not values.run.is_kept(folder):
        yield Finding(
            code="lora-path",
            severity=Severity.WARNING,
            message=f"{values.start.program} exchanges LoRA adapters through {folder}, which {values.run.nodes} nodes "
            "do not share",
            remedy="Use a folder that all nodes share, or one node.",
        )


def find_missing_data(values: StartValues) -> Iterator[Finding]:
    """Yield findings about data files that will not exist."""
    if values.start.kind not in _WITH_EVALUATION:
        return
    run = values.run
    names = ("data.val_data",) if values.start.kind is EntrypointKind.GENERATE else ("data.train_data", "data.val_data")
    for path in dict.fromkeys(path for name in names for path in values.paths(name)):
        if not _is_local_path(path) or any(_prepares(start, path, values.home) for start in values.earlier):
            continue
        full = _absolute(path, values)
        if not run.is_provided(full):
            yield Finding(
                code="data-path",
                severity=Severity.WARNING,
                message=f"{values.start.program} reads {full}, which is on no volume and in no mount",
                remedy="Prepare the data on a volume, and name it in data.train_data and data.val_data.",
            )
        elif run.path_exists(full) is False:
            yield Finding(
                code="data-missing",
                severity=Severity.ERROR,
                message=f"{values.start.program} reads {full}, which does not exist",
                remedy="Prepare the data first, with the same path.",
            )


def find_missing_model(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if the model is a local path that will not exist."""
    path = model_path(values)
    if path is None or not path.startswith(("/", "~", "./")):
        return
    full = _absolute(path, values)
    if not values.run.is_provided(full) or values.run.path_exists(full) is False:
        yield Finding(
            code="model-path",
            severity=Severity.WARNING,
            message=f"{values.start.program} reads its model from {full}, which is on no volume and in no mount"
            if not values.run.is_provided(full)
            else f"{values.start.program} reads its model from {full}, which does not exist",
            remedy="Copy the model to a volume, or use a name on Hugging Face.",
        )


def find_lost_database(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if the database of a Tinker server is lost at the end of the run."""
    if values.start.kind is not EntrypointKind.TINKER:
        return
    url = values.start.flags.get("database-url") or values.variable("SKYRL_DATABASE_URL") or ""
    path = url.removeprefix(_DATABASE_PREFIX)
    if url and (not url.startswith(_DATABASE_PREFIX) or values.run.is_kept(path)):
        return
    place = path or "a file of the checkout"
    folder = values.run.kept_folder
    yield Finding(
        code="database-path",
        severity=Severity.WARNING,
        message=f"{values.start.program} writes its database to {place}, which is on no writable volume: a restarted "
        "server does not find the sessions and checkpoints of an earlier one",
        remedy=f"Pass --database-url sqlite:///{folder}/tinker.db." if folder else "Mount a volume.",
    )


def model_path(values: StartValues) -> str | None:
    """Return the model of a start; None if it has none, or it is not known."""
    kind = values.start.kind
    if kind is EntrypointKind.TINKER:
        return values.start.flags.get("base-model")
    if kind is EntrypointKind.SFT:
        return values.text("model.path")
    return values.text("trainer.policy.model.path") if kind in (*_WITH_EVALUATION, EntrypointKind.SERVE) else None


def _is_local_path(path: str) -> bool:
    """Return whether SkyRL reads a data set from a file. Other names are those of data sets of Hugging Face."""
    return "://" not in path and (path.startswith(("/", "~", "./")) or path.endswith(_DATA_ENDINGS))


def _absolute(path: str, values: StartValues) -> str:
    path = f"{values.home}{path[1:]}" if path.startswith("~") else path
    return posixpath.normpath(posixpath.join(values.start.cwd, path))


def _prepares(start: Start, path: str, home: str) -> bool:
    """Return whether an earlier program of the command writes a file, by the folder that its options name."""
    if start.kind not in (EntrypointKind.DATASET, EntrypointKind.OTHER):
        return False
    folders = [start.flags[name] for name in _OUTPUT_FLAGS if start.flags.get(name)]
    folders = [f"{home}{folder[1:]}" if folder.startswith("~") else folder for folder in folders]
    full = posixpath.normpath(posixpath.join(start.cwd, path))
    return any(is_below(full, posixpath.normpath(posixpath.join(start.cwd, folder))) for folder in folders)


def _lost(values: StartValues, code: str, action: str, folder: str, option: str, name: str) -> Finding:
    kept = values.run.kept_folder
    target = f"{kept}/{name}/{_experiment_name(values, folder)}"
    return Finding(
        code=code,
        severity=Severity.WARNING,
        message=f"{values.start.program} {action} to {folder}, which is on no writable volume: the files are lost "
        "when the container ends",
        remedy=f"Pass {option}{target}." if kept else "Mount a volume with volumes=[VolumeSpec()].",
        overrides=(f"{option}{target}",) if kept and option.endswith("=") else (),
    )


def _experiment_name(values: StartValues, folder: str) -> str:
    """Return a folder name for the files of an experiment, which no other experiment uses.

    It is the last part of the declared path, of the path of the checkpoints, the declared name of the run or project,
    or the name of the program with a digest of its arguments, in this order. With a name that is the same for all
    experiments, a run would continue from the checkpoint of another one.
    """
    overrides = values.start.overrides
    declared = [folder, checkpoint_folder(values) or ""]
    declared += [overrides.get(f"{values.prefix}{key}", "") for key in ("run_name", "project_name")]
    for text in declared:
        name = posixpath.basename(posixpath.normpath(text))
        if name not in _DEFAULT_NAMES and "${" not in text:  # a reference of OmegaConf
            return name
    program = posixpath.basename(values.start.program.removesuffix(".py")).rpartition(".")[2]
    arguments = repr((sorted(overrides.items()), sorted(values.start.flags.items())))
    return f"{program}-{hashlib.sha256(arguments.encode()).hexdigest()[:8]}"
