"""Errors of Modal's client about a path on a volume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import modal.exception

from skyrl_modal.backends.modal.errors import backend_unavailable, error_text, is_account_refusal, is_client_error
from skyrl_modal.errors import PathNotFound, SpecError
from skyrl_modal.spec.volume import VolumeSpec


@contextmanager
def volume_errors(volume: VolumeSpec, path: str) -> Iterator[None]:
    """Convert the errors of Modal's client in a ``with`` block."""
    try:
        yield
    except modal.exception.NotFoundError as error:
        raise PathNotFound(f"volume {volume.name} has no {path or '/'}: {error_text(error)}") from error
    except modal.exception.InvalidError as error:
        if is_account_refusal(error):
            raise backend_unavailable(error) from error
        raise SpecError("path", path, f"Modal refused it: {error_text(error)}") from error
    except UnicodeEncodeError as error:
        raise SpecError("path", path, "it is not valid Unicode, which Modal requires") from error
    except Exception as error:
        if not is_client_error(error):
            raise
        raise backend_unavailable(error) from error
