"""Secrets that Modal stores, and optional secrets."""

from __future__ import annotations

from collections.abc import Sequence

from skyrl_modal.declaration import Attribute, field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.fields import check_flag, check_name, check_variable_names, to_strings
from skyrl_modal.spec.shown import Shown

#: Where the values of a secret are found.
SOURCES = ("modal", "environment")


@frozen
class SecretSpec(Shown):
    """A secret that Modal stores under a name, or a variable of the caller that may be missing.

    Attributes:
        name: Its name on Modal; with ``source="environment"`` the name of the variable.
        keys: Variables that a secret on Modal must contain. Their values are masked in the output.
        optional: Whether the run starts without the secret if it is not found. A message names it.
        source: ``"modal"``: the secret is stored on Modal, and the local backend does not have it. ``"environment"``:
            a variable that is read from the caller's environment or a .env file, as for a string in ``secrets``.

    Example:
        >>> SecretSpec("huggingface", keys=["HF_TOKEN"]).keys
        ('HF_TOKEN',)
        >>> SecretSpec("WANDB_API_KEY", source="environment", optional=True).optional
        True
    """

    name: str = field(validator=check_name)
    keys: Sequence[str] = field(default=(), converter=to_strings, validator=check_variable_names)
    optional: bool = field(default=False, validator=check_flag, kw_only=True)
    source: str = field(default="modal", kw_only=True)

    @source.validator
    def _check_source(self, attribute: Attribute[str], value: object) -> None:
        if value not in SOURCES:
            raise SpecError("source", value, f"pass one of {', '.join(map(repr, SOURCES))}")
        if value == "environment" and self.keys:
            raise SpecError(
                "keys",
                self.keys,
                "a variable has no keys; pass one SecretSpec for each variable",
                shell_remedy="a variable has no keys; write one table for each variable",
            )
        if value == "environment" and not self.name.isidentifier():
            # The text may be a value by mistake: it is not repeated.
            raise SpecError("name", "(not shown)", "pass the name of a variable, not its value")
