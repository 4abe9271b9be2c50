"""The part of attrs that declarations need, with classes that are defined in a small part of the time.

Importing attrs, which imports ``inspect`` and ``platform``, and compiling the functions of each class would take a
sixth of the time of a short run. Here all classes share the same functions, and attrs is imported when it is needed:
when a program calls a function of attrs with one of these classes, or derives a class of attrs from one. The functions
of attrs, such as ``attrs.evolve``, ``attrs.fields`` and ``attrs.asdict``, accept the classes and their instances.
For mypy these names are those of attrs. The argument ``slots`` has no effect at run time.
"""

from __future__ import annotations

import sys

from skyrl_modal.dataclass import MISSING

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from attrs import Attribute as Attribute
    from attrs import evolve as evolve
    from attrs import field as field
    from attrs import fields as fields
    from attrs import frozen as frozen
    from attrs import has as has
else:
    from skyrl_modal.dataclass import add_positional

    class Attribute:
        """A field of a declared class. The attributes are those of ``attrs.Attribute`` that validators need."""

        def __init__(self, default, validator, repr, eq, factory, converter, metadata, kw_only) -> None:  # noqa: A002
            self.name = self.alias = ""
            self.type = None
            self.default = default
            self.factory = factory
            self.converter = converter
            self.validators = list(validator) if isinstance(validator, list | tuple) else [validator] * bool(validator)
            self.metadata = metadata or {}
            self.repr = repr
            self.eq = eq
            self.kw_only = kw_only

        def validator(self, method):
            """Add a method of the class as a validator, as a decorator."""
            self.validators.append(method)
            return method

        def to_attrs(self) -> object:
            """Return the same field for attrs."""
            import attrs

            default = attrs.NOTHING if self.default is MISSING else self.default
            return attrs.field(
                default=default if self.factory is None else attrs.Factory(self.factory),
                validator=self.validators or None,
                converter=self.converter,
                metadata=self.metadata,
                repr=self.repr,
                eq=self.eq,
                kw_only=self.kw_only,
                type=self.type,
            )

    def field(
        *,
        default=MISSING,
        validator=None,
        repr=True,  # noqa: A002  # as in attrs
        eq=True,
        factory=None,
        converter=None,
        metadata=None,
        kw_only=False,
    ) -> Attribute:
        """Return a field with options. The arguments are those of ``attrs.field``."""
        return Attribute(default, validator, repr, eq, factory, converter, metadata, kw_only)

    class _Fields(tuple):
        """The fields of a class, also by their names."""

        __slots__ = ()

        def __getattr__(self, name: str) -> Attribute:
            for item in self:
                if item.name == name:
                    return item
            raise AttributeError(name)

    def frozen(cls=None, *, kw_only: bool = False, slots: bool = True) -> object:
        """Make a class one whose instances have the declared fields, and cannot be changed.

        The arguments are those of ``attrs.frozen``.
        """
        if cls is None:
            return lambda cls: frozen(cls, kw_only=kw_only, slots=slots)
        own = []
        for name, hint in cls.__annotations__.items():
            default = cls.__dict__.get(name, MISSING)
            item = default if isinstance(default, Attribute) else field(default=default)
            item.name, item.type, item.kw_only = name, hint, kw_only or item.kw_only
            item.alias = name.lstrip("_")  # as in attrs
            own.append(item)
            if default is not MISSING:
                delattr(cls, name)
        names = {item.name for item in own}
        inherited = [item for item in getattr(cls, "_declared_fields", ()) if item.name not in names]
        cls._declared_fields, cls._own_fields = _Fields([*inherited, *own]), tuple(own)
        cls.__match_args__ = tuple([item.name for item in cls._declared_fields if not item.kw_only])
        cls.__init__, cls.__repr__, cls.__eq__, cls.__hash__ = _initialize, _represent, _is_equal, _hash_values
        cls.__setattr__, cls.__delattr__ = _REFUSE_CHANGE, _refuse_change
        cls.__attrs_attrs__, cls.__signature__, cls.__replace__ = _ATTRS_FIELDS, _SIGNATURE, evolve
        return cls

    def _initialize(self, /, *args: object, **values: object) -> None:
        cls = type(self)
        if args:
            names = [item.alias for item in cls._declared_fields if not item.kw_only]
            add_positional(cls, names, args, values)
        attributes = self.__dict__
        for item in cls._declared_fields:
            if item.alias in values:
                value = values.pop(item.alias)
            elif item.factory is not None:
                value = item.factory()
            elif item.default is not MISSING:
                value = item.default
            else:
                raise TypeError(f"{cls.__name__}() requires the argument {item.alias!r}")
            attributes[item.name] = value if item.converter is None else item.converter(value)
        if values:
            raise TypeError(f"{cls.__name__}() has no argument {next(iter(values))!r}")
        for item in cls._declared_fields:
            for validate in item.validators:
                validate(self, item, attributes[item.name])
        if hasattr(cls, "__attrs_post_init__"):
            self.__attrs_post_init__()

    def _compared(instance: object) -> tuple[object, ...]:
        return tuple([getattr(instance, item.name) for item in instance._declared_fields if item.eq])

    def _is_equal(self: object, other: object) -> object:
        return _compared(self) == _compared(other) if type(other) is type(self) else NotImplemented

    def _hash_values(self: object) -> int:
        return hash(_compared(self))

    def _represent(self: object) -> str:
        shown = [f"{item.name}={getattr(self, item.name)!r}" for item in self._declared_fields if item.repr]
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _refuse_change(self: object, name: str, value: object = None) -> None:
        from attrs.exceptions import FrozenInstanceError

        raise FrozenInstanceError

    class _RefuseChange:
        """``__setattr__`` of the classes. attrs recognizes a frozen class by its own function."""

        def __get__(self, instance: object, owner: type) -> object:
            if instance is not None:
                return _refuse_change.__get__(instance)
            make = sys.modules.get("attr._make")
            return getattr(make, "_frozen_setattrs", _refuse_change)

    class _AttrsFields:
        """``__attrs_attrs__`` of the classes, which the functions of attrs read. It is created on first use."""

        def __get__(self, instance: object, owner: type) -> object:
            return _same_with_attrs(_declared_class(owner)).__attrs_attrs__

    class _Signature:
        """``__signature__`` of the classes."""

        def __get__(self, instance: object, owner: type) -> object:
            declared = _declared_class(owner)
            if declared is None or owner.__init__ is not _initialize:
                return None  # ``inspect`` reads that of __init__ then
            import inspect

            signature = inspect.signature(_same_with_attrs(declared).__init__)
            computed = {item.alias: item.factory for item in declared._declared_fields if item.factory is not None}
            parameters = [
                one.replace(default=_ComputedDefault(computed[one.name])) if one.name in computed else one
                for one in list(signature.parameters.values())[1:]
            ]
            return signature.replace(parameters=parameters)

    class _ComputedDefault:
        """A default that is computed for each instance, in a signature. ``help`` shows its current value."""

        def __init__(self, factory) -> None:
            self._factory = factory

        def __repr__(self) -> str:
            return _describe_default(self._factory())

    def _describe_default(value: object) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(_describe_default, value))}]"
        if has(type(value)) and value == type(value)():
            return f"{type(value).__name__}()"
        return repr(value)

    _REFUSE_CHANGE, _ATTRS_FIELDS, _SIGNATURE = _RefuseChange(), _AttrsFields(), _Signature()

    def _same_with_attrs(declared: type) -> type:
        """Return a class of attrs with the same fields and bases. It is created once."""
        if "_same_with_attrs" not in declared.__dict__:
            import attrs

            content = {item.name: item.to_attrs() for item in declared._own_fields}
            created = type(declared.__name__, declared.__bases__, content)
            declared._same_with_attrs = attrs.frozen(slots=False)(created)
        return declared._same_with_attrs

    def _declared_class(cls: type) -> type | None:
        """Return the class, or the nearest base class, with the fields of a class; None if attrs has created it."""
        for base in cls.__mro__:
            if "_own_fields" in base.__dict__:
                return base
            if "__attrs_attrs__" in base.__dict__:
                return None
        return None

    def fields(cls: type) -> object:
        """Return the fields of a declared class, in their order and by their names."""
        declared = _declared_class(cls)
        if declared is not None:
            return declared._declared_fields
        import attrs

        return attrs.fields(cls)

    def has(cls: type) -> bool:
        """Return whether a class is declared, here or with attrs."""
        return any("__attrs_attrs__" in base.__dict__ for base in cls.__mro__)

    def evolve(instance: object, /, **changes: object) -> object:
        """Return an instance with other values of some fields."""
        cls = type(instance)
        declared = _declared_class(cls)
        if declared is None:
            import attrs

            return attrs.evolve(instance, **changes)
        values = {item.alias: getattr(instance, item.name) for item in declared._declared_fields}
        return cls(**{**values, **changes})
