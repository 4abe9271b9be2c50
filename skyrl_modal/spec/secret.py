"""Secrets that Modal stores."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import field, frozen

from skyrl_modal.spec.fields import check_name, check_texts, to_tuple


@frozen
class SecretSpec:
    """A secret that Modal keeps under a name.

    Attributes:
        name: Its name on Modal.
        keys: The variables that it holds; those given here are required, and their values are masked in the output.

    Example:
        >>> SecretSpec("huggingface", keys=["HF_TOKEN"]).keys
        ('HF_TOKEN',)
    """

    name: str = field(validator=check_name)
    keys: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
