"""How a notebook shows what a user declares."""

from __future__ import annotations


class Shown:
    """A declared class that a notebook shows as a table of its fields."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from skyrl_modal.views.notebook import fields_to_html  # only a notebook needs it

        return fields_to_html(self)
