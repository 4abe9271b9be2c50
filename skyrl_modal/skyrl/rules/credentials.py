"""Keys that a start needs, and files that its tracker writes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.resolution.records import KINDS_WITH_TRACKER
from skyrl_modal.skyrl.rules.facts import StartValues
from skyrl_modal.skyrl.rules.paths import model_path

#: Models whose licence has to be accepted on Hugging Face (their pages, 2026). Others may be gated too.
GATED_MODELS = re.compile(r"meta-llama/|google/gemma-(?:2b|7b|2-|3-|3n)|Cohere(?:ForAI|Labs)/", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?(\w+)\s*=\s*\S", re.MULTILINE)
_TRACKER_FOLDERS = {
    "tensorboard": ("TENSORBOARD_DIR", "tensorboard_log"),
    "mlflow": ("MLFLOW_TRACKING_URI", "mlruns"),
    "swanlab": ("SWANLAB_LOG_DIR", "swanlog"),
    "wandb": ("WANDB_DIR", "wandb"),
}


def is_defined(values: StartValues, name: str) -> bool:
    """Return whether a variable is defined for a start, or may be."""
    if values.run.has_unknown_variables or values.variable(name):
        return True
    texts = [values.run.read_mounted(_absolute(values, file)) for file in values.start.env_files]
    return any(name in _ASSIGNMENT.findall(text) for text in texts if text is not None)


def _absolute(values: StartValues, file: str) -> str:
    return file if file.startswith("/") else f"{values.start.cwd}/{file}"


def find_missing_wandb_key(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if the tracker is wandb, and its key is missing (``validate_generator_cfg``)."""
    if values.start.kind not in KINDS_WITH_TRACKER or values.text(f"{values.prefix}logger") != "wandb":
        return
    if not is_defined(values, "WANDB_API_KEY"):
        override = f"{values.prefix}logger=console"
        yield Finding(
            code="wandb-key-missing",
            severity=Severity.ERROR,
            message=f"{values.start.program} uses wandb, and WANDB_API_KEY is not defined",
            remedy=f'Pass secrets=["WANDB_API_KEY"], or {override}.',
            overrides=(override,),
        )


def find_missing_hub_token(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if the model is gated, and no token of Hugging Face is defined."""
    model = model_path(values)
    if model is None or not GATED_MODELS.match(model):
        return
    if not is_defined(values, "HF_TOKEN") and not is_defined(values, "HUGGING_FACE_HUB_TOKEN"):
        yield Finding(
            code="hf-token-missing",
            severity=Severity.WARNING,
            message=f"{values.start.program} uses {model}, whose licence has to be accepted, and HF_TOKEN is not "
            "defined",
            remedy='Accept the licence on its page, and pass secrets=["HF_TOKEN"].',
        )


def find_repeated_download(values: StartValues) -> Iterator[Finding]:
    """Yield a note if the model is downloaded again at each start."""
    model = model_path(values)
    if not model or model.startswith(("/", "~", ".")) or values.run.keeps_disk or "/" not in model:
        return
    folders = [folder for name in ("HF_HUB_CACHE", "HF_HOME") if (folder := values.variable(name))]
    if not folders or not values.run.is_kept(folders[0]):
        kept = values.run.kept_folder
        yield Finding(
            code="hf-home",
            severity=Severity.NOTE,
            message=f"{values.start.program} downloads {model} at each start: HF_HOME is on no writable volume",
            remedy=f'Pass env={{"HF_HOME": "{kept}/huggingface"}}.' if kept else "",
        )


def find_lost_tracker_files(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if the tracker writes files that are lost."""
    if values.start.kind not in KINDS_WITH_TRACKER:
        return
    tracker = values.text(f"{values.prefix}logger") or ""
    if tracker not in _TRACKER_FOLDERS:
        return
    name, default = _TRACKER_FOLDERS[tracker]
    mode = values.variable(f"{tracker.upper()}_MODE") or ""
    if tracker in ("wandb", "swanlab") and mode not in ("offline", "local"):
        return  # the files are uploaded
    folder = (values.variable(name) or default).removeprefix("file://").removeprefix("sqlite:///")
    if values.run.is_kept(folder):
        return
    yield Finding(
        code="tracker-path",
        severity=Severity.WARNING,
        message=f"{values.start.program} writes the files of {tracker} to {folder}, which is on no writable volume",
        remedy=f"Do not define {name}: then it is a folder on the volume."
        if values.run.kept_folder
        else "Mount a volume.",
    )
