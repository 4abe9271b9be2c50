"""The Modal backend: one app per run, with the supervisor as its function."""

from skyrl_modal.backends.modal.backend import ModalBackend

__all__ = ["ModalBackend"]
