"""A variant of ``dataclasses.dataclass`` that defines a class in a third of the time.

``dataclasses`` compiles up to seven functions for each class, which would be the largest part of the start-up time of a
supervisor. Here only ``__init__`` is compiled; comparison, hash and representation are the same functions for all
classes. ``frozen=True`` is checked by mypy, and not at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses

    def dataclass(*, frozen: bool = False, slots: bool = False, kw_only: bool = False) -> Any:
        """Return a class decorator. The arguments are those of ``dataclasses.dataclass``."""

        def decorate(cls: type) -> type:
            made = dataclasses.dataclass(cls, slots=slots, kw_only=kw_only, repr=False, eq=False)
            made.__repr__, made.__eq__, made.__hash__ = _represent, _is_equal, _hash_values
            return made

        return decorate

    def _values(record: Any) -> tuple[Any, ...]:
        return tuple(getattr(record, name) for name in record.__dataclass_fields__)

    def _represent(self: Any) -> str:
        fields = self.__dataclass_fields__.values()
        shown = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields if field.repr)
        return f"{type(self).__qualname__}({shown})"

    def _is_equal(self: Any, other: object) -> Any:
        return _values(self) == _values(other) if type(other) is type(self) else NotImplemented

    def _hash_values(self: Any) -> int:
        return hash(_values(self))
