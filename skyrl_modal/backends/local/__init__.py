"""The backend that runs on this machine, by the same supervisor and at the same paths as in a container."""

from skyrl_modal.backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]
