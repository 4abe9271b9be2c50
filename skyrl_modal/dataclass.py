"""The part of ``dataclasses`` that records need, with classes that are defined in a small part of the time.

``dataclasses`` imports ``inspect`` and compiles up to seven functions for each class, which would be the largest part
of the start-up time of a supervisor. Here all classes share the same functions, and nothing is compiled.
For mypy these names are those of ``dataclasses``. ``slots=True`` has no effect at run time.

The functions of ``dataclasses``, such as ``asdict`` and ``replace``, accept the instances: what they read of a class is
created when it is first read.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from dataclasses import MISSING as MISSING
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import fields as fields
    from dataclasses import is_dataclass as is_dataclass
    from dataclasses import replace as replace
else:

    class _Missing:
        """The type of ``MISSING``."""

        def __repr__(self) -> str:
            return "<MISSING>"

    #: The default of a field that has none.
    MISSING = _Missing()

    class Field:
        """A field of a record. The attributes are those of ``dataclasses.Field``."""

        def __init__(self, default, default_factory, *, repr) -> None:  # noqa: A002  # as in dataclasses
            self.name = ""
            self.type = ""
            self.default = default
            self.default_factory = default_factory
            self.repr = repr
            self.kw_only = False

    def field(*, default=MISSING, default_factory=MISSING, repr=True) -> Field:  # noqa: A002  # as in dataclasses
        """Return a field with options. The arguments are those of ``dataclasses.field``."""
        return Field(default, default_factory, repr=repr)

    class _OnFirstUse:
        """An attribute of a class whose value is created when it is first read."""

        def __init__(self, create) -> None:
            self._create = create

        def __set_name__(self, owner: type, name: str) -> None:
            self._name = name

        def __get__(self, instance: object, owner: type) -> object:
            return self._create(owner)

    def _standard_fields(cls: type) -> object:
        import dataclasses

        def convert(item: Field) -> dataclasses.Field:
            options = {name: getattr(item, name) for name in ("default", "default_factory")}
            given = {name: value for name, value in options.items() if value is not MISSING}
            return dataclasses.field(**given, repr=item.repr, kw_only=item.kw_only)

        items = [(item.name, item.type, convert(item)) for item in cls._record_fields]
        return dataclasses.make_dataclass(cls.__name__, items).__dataclass_fields__

    def _signature(cls: type) -> object:
        import inspect

        def parameter(item: Field) -> inspect.Parameter:
            kind = inspect.Parameter.KEYWORD_ONLY if item.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
            default = inspect.Parameter.empty if item.default is MISSING else item.default
            if item.default_factory is not MISSING:
                default = item.default_factory()
            return inspect.Parameter(item.name, kind, default=default, annotation=item.type)

        return inspect.Signature([parameter(item) for item in cls._record_fields])

    def dataclass(*, frozen: bool = False, slots: bool = False, kw_only: bool = False) -> object:
        """Return a class decorator. The arguments are those of ``dataclasses.dataclass``."""

        def decorate(cls: type) -> type:
            declared = {item.name: item for item in getattr(cls, "_record_fields", ())}
            for name, hint in cls.__annotations__.items():
                default = cls.__dict__.get(name, MISSING)
                item = default if isinstance(default, Field) else Field(default, MISSING, repr=True)
                item.name, item.type, item.kw_only = name, hint, kw_only
                declared[name] = item
                if item is default:
                    delattr(cls, name)
            cls._record_fields = tuple(declared.values())
            cls.__match_args__ = tuple(name for name, item in declared.items() if not item.kw_only)
            cls.__init__, cls.__repr__, cls.__eq__, cls.__hash__ = _initialize, _represent, _is_equal, _hash_values
            cls.__dataclass_fields__, cls.__signature__ = _STANDARD_FIELDS, _SIGNATURE
            if frozen:
                cls.__setattr__ = cls.__delattr__ = _refuse_change
            return cls

        return decorate

    _STANDARD_FIELDS, _SIGNATURE = _OnFirstUse(_standard_fields), _OnFirstUse(_signature)

    def add_positional(cls, names, args, values) -> None:
        """Add positional arguments of a class with these names to those that were passed by name."""
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__}() takes {len(names)} positional arguments, and {len(args)} were given")
        for name, value in zip(names, args, strict=False):
            if name in values:
                raise TypeError(f"{cls.__name__}() received two values for the argument {name!r}")
            values[name] = value

    def _initialize(self, /, *args: object, **values: object) -> None:
        cls = type(self)
        if args:
            add_positional(cls, cls.__match_args__, args, values)
        attributes = self.__dict__
        for item in cls._record_fields:
            name = item.name
            if name in values:
                attributes[name] = values.pop(name)
            elif item.default is not MISSING:
                attributes[name] = item.default
            elif item.default_factory is not MISSING:
                attributes[name] = item.default_factory()
            else:
                raise TypeError(f"{cls.__name__}() requires the argument {name!r}")
        if values:
            raise TypeError(f"{cls.__name__}() has no argument {next(iter(values))!r}")
        if hasattr(cls, "__post_init__"):
            self.__post_init__()

    def _refuse_change(self, name: str, *value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {name!r}. Create a new one with replace()")

    def _values(record: object) -> tuple[object, ...]:
        return tuple([getattr(record, item.name) for item in record._record_fields])

    def _represent(self: object) -> str:
        shown = [f"{item.name}={getattr(self, item.name)!r}" for item in self._record_fields if item.repr]
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _is_equal(self: object, other: object) -> object:
        return _values(self) == _values(other) if type(other) is type(self) else NotImplemented

    def _hash_values(self: object) -> int:
        return hash(_values(self))

    def fields(record: object) -> tuple[Field, ...]:
        """Return the fields of a record or of its class, in their order."""
        return record._record_fields

    def is_dataclass(value: object) -> bool:
        """Return whether a value is a record or the class of one."""
        return hasattr(value, "_record_fields")

    def replace(record: object, /, **changes: object) -> object:
        """Return a record with other values of some fields."""
        values = {item.name: getattr(record, item.name) for item in record._record_fields}
        return type(record)(**{**values, **changes})
