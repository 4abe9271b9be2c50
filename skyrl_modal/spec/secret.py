"""Secrets that Modal stores."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from skyrl_modal.spec.fields import check_name, check_strings, to_strings


@frozen
class SecretSpec:
    """A secret that Modal stores under a name.

    Attributes:
        name: Its name on Modal.
        keys: Variables that it must contain. Their values are masked in the output.

    Example:
        >>> SecretSpec("huggingface", keys=["HF_TOKEN"]).keys
        ('HF_TOKEN',)
    """

    name: str = field(validator=check_name)
    keys: Sequence[str] = field(default=(), converter=to_strings, validator=check_strings)
