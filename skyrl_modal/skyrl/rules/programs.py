"""Programs, images and files that a start needs, and the names of its arguments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

from skyrl_modal.findings import Finding, Severity
from skyrl_modal.skyrl.resolution.records import EntrypointKind
from skyrl_modal.skyrl.rules.facts import StartValues

#: A published image of SkyRL without megatron; one with it has an ending.
_IMAGE_WITHOUT_MEGATRON = re.compile(r"novaskyai/skyrl-train-ray-[\w.]+-py[\d.]+-cu[\d.]+")
_MAX_NAMES = 3


def find_missing_uv(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if a start needs uv, which is not installed."""
    if values.start.uses_uv and values.run.has_uv is False:
        yield Finding(
            code="uv-missing",
            severity=Severity.ERROR,
            message=f"{values.start.program} is started by uv, which is not installed",
            remedy="Install uv: pip install uv.",
        )


def find_missing_megatron(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if a start uses megatron, and the image is one without it."""
    start = values.start
    if start.kind in (EntrypointKind.DATASET, EntrypointKind.OTHER):
        return
    strategy = values.text("strategy" if start.kind is EntrypointKind.SFT else "trainer.strategy")
    uses_megatron = strategy == "megatron" or "megatron" in (*start.extras, start.flags.get("backend"))
    if uses_megatron and _IMAGE_WITHOUT_MEGATRON.fullmatch(values.run.image):
        yield Finding(
            code="megatron-image",
            severity=Severity.WARNING,
            message=f"{start.program} uses megatron, whose packages need what {values.run.image} does not contain",
            remedy=f'Pass image=ImageSpec(base="{values.run.image}-megatron").',
        )


def find_missing_env_files(values: StartValues) -> Iterator[Finding]:
    """Yield a finding for each file of ``uv run --env-file`` that is not mounted. uv refuses to start without it."""
    for file in values.start.env_files:
        path = file if file.startswith("/") else f"{values.start.cwd}/{file}"
        if values.run.read_mounted(path) is None and not any(
            path.startswith(f"{volume}/") for volume in values.run.volumes
        ):
            yield Finding(
                code="env-file-missing",
                severity=Severity.ERROR,
                message=f"{values.start.program} is started with `uv run --env-file {file}`, and this file is not "
                "mounted",
                remedy=f'Create it, and pass MountSpec(include=["/{file}"]) if git ignores it.',
            )


def find_unknown_keys(values: StartValues) -> Iterator[Finding]:
    """Yield a finding if arguments name fields that the configuration does not have."""
    unknown = [key for key in values.start.overrides if values.has_key(key.lstrip("+~")) is False or key[0] in "+~"]
    unknown = [key for key in unknown if values.has_key(key) is not None]
    if unknown:
        names = ", ".join(unknown[:_MAX_NAMES]) + (f" and {len(unknown) - _MAX_NAMES} more" if unknown[3:] else "")
        near = get_close_matches(unknown[0], [key for key in values.start.overrides if key not in unknown], n=1)
        yield Finding(
            code="unknown-key",
            severity=Severity.ERROR,
            message=f"{values.start.program} has no field {names}, and refuses unknown ones",
            remedy="Correct or remove the arguments." + (f" Did you mean {near[0]}?" if near else ""),
        )
