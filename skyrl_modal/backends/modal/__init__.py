"""The Modal backend: one app per run, with the supervisor as its function.

``ModalBackend`` is loaded on first use: it loads Modal's client, which a plan does not need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyrl_modal.backends.modal.backend import ModalBackend as ModalBackend

__all__ = ["ModalBackend"]


def __getattr__(name: str) -> Any:
    if name != "ModalBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from skyrl_modal.backends.modal.backend import ModalBackend

    return ModalBackend
