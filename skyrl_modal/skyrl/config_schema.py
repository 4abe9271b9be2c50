"""The fields and defaults of SkyRL's configuration, read from its dataclasses. Nothing is imported or executed."""

from __future__ import annotations

import ast
import contextlib
import functools
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from attrs import field, frozen

from skyrl_modal.gitfiles.files import read_regular_file
from skyrl_modal.skyrl.resolution.records import TRAIN_CONFIG_KINDS, EntrypointKind

#: The files with the dataclasses, and the root class for each kind of entrypoint.
_FILES = ("skyrl/train/config/config.py", "skyrl/train/config/sft_config.py")
_ROOT_CLASSES = dict.fromkeys((*TRAIN_CONFIG_KINDS, EntrypointKind.TINKER), "SkyRLTrainConfig")
_ROOT_CLASSES[EntrypointKind.SFT] = "SFTConfig"
_MAX_BYTES = 1 << 20
#: Keys that are not fields, and that SkyRL still accepts (``SkyRLTrainConfig.from_cli_overrides``, August 2026).
_OLD_KEYS = frozenset({"generator.inference_engine.async_engine", "trainer.use_sample_packing", "override_entrypoint"})
#: Types whose values have no fields. A class of another file may have some.
_PLAIN_TYPES = frozenset(
    {"str", "int", "float", "bool", "list", "List", "Optional", "Union", "Literal", "Tuple", "None"}
)
_MAX_DEPTH = 12


class Unknown(Enum):
    """The type of ``UNKNOWN``."""

    VALUE = "unknown"


#: A default that cannot be read.
UNKNOWN = Unknown.VALUE
#: A value of a configuration.
Value = object


@frozen
class _Field:
    classes: Sequence[str]
    is_open: bool
    default: ast.expr | None


@frozen
class ConfigSchema:
    """The fields of SkyRL's configuration."""

    _classes: Mapping[str, Mapping[str, _Field]] = field(factory=dict)

    @classmethod
    def read(cls, root: Path) -> ConfigSchema:
        """Return the schema of a checkout. It is empty if the checkout has no such dataclasses, or is not readable."""
        sources = []
        for name in _FILES:
            with contextlib.suppress(OSError):
                sources.append(read_regular_file(root / name, max_bytes=_MAX_BYTES).decode("utf-8", "replace"))
        return cls(_read_classes(tuple(sources)))

    def has_key(self, kind: EntrypointKind, key: str) -> bool | None:
        """Return whether an entrypoint has a field; None if this is not known."""
        root = _ROOT_CLASSES.get(kind)
        if root is None or root not in self._classes:
            return None
        if key in _OLD_KEYS:
            return True
        name = root
        for number, part in enumerate(key.split(".")):
            found = self._classes[name].get(part)
            if found is None:
                return False
            nested = [each for each in found.classes if each in self._classes]
            if found.is_open or not nested:
                if number == key.count(".") or found.is_open:
                    return True
                return None if any(each not in _PLAIN_TYPES for each in found.classes) else False
            name = nested[0]
        return True

    def default(self, kind: EntrypointKind, key: str, home: str) -> Value:
        """Return the default of a field; ``UNKNOWN`` if it cannot be read.

        Args:
            kind: The entrypoint.
            key: The name of the field, with dots.
            home: What ``~`` stands for.
        """
        name = _ROOT_CLASSES.get(kind, "")
        given: ast.expr | None = None
        for part in key.split("."):
            keywords = _keywords(given, name)
            found = self._classes.get(name, {}).get(part)
            if found is None:
                return UNKNOWN
            given = keywords.get(part, found.default)
            name = next((each for each in found.classes if each in self._classes), "")
        return UNKNOWN if given is None else _evaluate(given, home)


@functools.lru_cache(maxsize=4)  # parsing takes longer than everything else in a further plan of the same checkout
def _read_classes(sources: tuple[str, ...]) -> Mapping[str, Mapping[str, _Field]]:
    classes: dict[str, dict[str, _Field]] = {}
    for source in sources:
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                inherited = [classes.get(base.id, {}) for base in node.bases if isinstance(base, ast.Name)]
                classes[node.name] = {key: value for each in inherited for key, value in each.items()}
                classes[node.name].update(_fields(node))
    return classes


def _fields(node: ast.ClassDef) -> dict[str, _Field]:
    fields = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            names = [each.id for each in ast.walk(item.annotation) if isinstance(each, ast.Name)]
            is_open = any(name in ("dict", "Dict", "Any", "Mapping") for name in names)
            fields[item.target.id] = _Field(names, is_open, item.value)
    return fields


def _keywords(given: ast.expr | None, name: str, depth: int = 0) -> dict[str, ast.expr]:
    """Return the arguments with which a default constructs a nested class."""
    if given is None or depth > _MAX_DEPTH:
        return {}
    for call in ast.walk(given):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == name:
            return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    return {}


def _evaluate(node: ast.expr, home: str, depth: int = 0) -> Value:
    """Return the value of a default: a literal, or one in ``field(...)``, with the user's home folder replaced."""
    if depth > _MAX_DEPTH:
        return UNKNOWN
    match node:
        case ast.Lambda(body=body):
            return _evaluate(body, home, depth + 1)
        case ast.Call(func=ast.Name(id="field"), keywords=keywords):
            values = [item.value for item in keywords if item.arg in ("default", "default_factory")]
            return _evaluate(values[0], home, depth + 1) if values else UNKNOWN
        case ast.Call(func=ast.Attribute(attr="expanduser"), args=[argument]):
            path = _evaluate(argument, home, depth + 1)
            return f"{home}{path[1:]}" if isinstance(path, str) and path.startswith("~") else path
        case ast.List(elts=items):
            found = [_evaluate(item, home, depth + 1) for item in items]
            return UNKNOWN if UNKNOWN in found else found
    try:
        value: Value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN
    return value
