"""Files in the format of ``torch.save``, without torch: a zip archive with a pickle.

They contain dictionaries, lists, texts, numbers and arrays. ``torch.load(path, weights_only=False)`` reads them, with
arrays as dictionaries. Reading executes nothing: a pickle that refers to a class or a function is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import moments
import numpy as np

_VERSION = b"3\n"


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refused: {module}.{name}")


def save(path: Path, value: dict[str, Any]) -> None:
    """Write a file, in two parts and in place, as torch writes larger files in many."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        folder = path.stem
        archive.writestr(f"{folder}/data.pkl", pickle.dumps(_plain(value), protocol=4))
        archive.writestr(f"{folder}/byteorder", b"little")
        archive.writestr(f"{folder}/version", _VERSION)
    content = buffer.getvalue()
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        moments.reached(f"half of {path.parent.name}/{path.name}")
        file.write(content[len(content) // 2 :])


def load(path: Path) -> dict[str, Any]:
    """Read a file that ``save`` has written.

    Raises:
        ValueError: It is incomplete, or not such a file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            [name] = [each for each in archive.namelist() if each.endswith("/data.pkl")]
            value = _PlainUnpickler(io.BytesIO(archive.read(name))).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    result: dict[str, Any] = _with_arrays(value)
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": list(value.shape), "content": value.tobytes()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _with_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"dtype", "shape", "content"}:
            return np.frombuffer(value["content"], dtype=value["dtype"]).reshape(value["shape"]).copy()
        return {key: _with_arrays(item) for key, item in value.items()}
    return [_with_arrays(item) for item in value] if isinstance(value, list) else value
