"""The local backend: the same container code in namespaces of this machine."""

from skyrl_modal.backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]
