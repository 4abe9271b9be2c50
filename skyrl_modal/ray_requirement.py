"""The version of Ray that a project requires, from its pyproject.toml and its uv.lock. Neither is executed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from skyrl_modal.dataclass import dataclass
from skyrl_modal.toml_tables import items, table

#: A requirement of Ray (PEP 508): the version specifiers or the URL, then an optional marker.
_REQUIREMENT = re.compile(r"\s*ray(?![\w.-])\s*(?:\[[^\]]*\])?\s*(?P<rest>[^;]*?)\s*(?:;(?P<marker>.*))?", re.I | re.S)
_CLAUSE = re.compile(r"\s*(===|==|~=|!=|<=|>=|<|>)\s*([^\s,;]+)\s*")
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)[._-]?(?:(a|b|rc|dev|post)[._-]?(\d*))?(?:\+.*)?", re.I)
_EXACT = re.compile(r"={2,3}\s*([0-9][0-9A-Za-z.+]*)")
#: The version in the name of a wheel or an archive of Ray.
_FILE_VERSION = re.compile(r"/ray-([0-9][0-9A-Za-z.]*?)(?:-|\.tar|\.zip)")
#: Clauses of a marker that name an operating system. Containers run Linux.
_SYSTEM_CLAUSE = re.compile(r"""(?:sys_platform|platform_system|os_name)\s*(==|!=)\s*['"](\w+)['"]""")
_LINUX_NAMES = ("linux", "linux2", "Linux", "posix")
#: The entry of Ray in a uv.lock. Parsing all of a large file as TOML would take a second.
_LOCK_ENTRY = re.compile(r'^\[\[package\]\]\nname = "ray"\nversion = "([^"\n]+)"', re.MULTILINE)
_PHASES = {"dev": -4, "a": -3, "b": -2, "rc": -1, "": 0, "post": 1}


@dataclass(frozen=True, slots=True)
class RayRequirement:
    """What a project requires of Ray.

    Attributes:
        version: The only version that ``uv run`` in the project uses; None if several are possible.
        specifiers: The version specifiers, such as ``>=2.51,<2.58``. Of several, each applies to a part of the project.
    """

    version: str | None
    specifiers: tuple[str, ...]

    @property
    def text(self) -> str:
        """The requirement in pip's notation, such as ``ray==2.57.0``."""
        return " or ".join(f"ray{item}" for item in self.specifiers) if self.version is None else f"ray=={self.version}"

    def permits(self, version: str) -> bool:
        """Return whether a version of Ray meets the requirement.

        Example:
            >>> RayRequirement(None, (">=2.51,<2.58",)).permits("2.60.0")
            False
        """
        if self.version is not None:
            return permits(f"=={self.version}", version)
        return any(permits(item, version) for item in self.specifiers)


def find_requirement(project: dict[str, Any], lock: str | None) -> RayRequirement | None:
    """Return what a project requires of Ray; None if it requires nothing, or no version is named.

    A requirement in ``override-dependencies`` of uv replaces the others, as for uv. The version in uv.lock counts if no
    requirement pins one: uv would replace a lock that contradicts a pin.

    Args:
        project: The content of pyproject.toml, whose values can have any type.
        lock: The text of uv.lock; None if there is none.
    """
    uv = table(table(project, "tool"), "uv")
    overrides = list(_ray_specifiers(items(uv.get("override-dependencies"))))
    if _has_ray_source(uv) and not overrides:
        return _source_requirement(uv)
    specifiers = tuple(dict.fromkeys(overrides or _ray_specifiers(_declared(project, uv))))
    exact = {match[1] for item in specifiers if (match := _EXACT.fullmatch(item.strip()))}
    exact |= {found[1] for item in specifiers if (found := _FILE_VERSION.search(item))}
    if len(exact) == 1:
        return RayRequirement(exact.pop(), specifiers)
    locked = set(_LOCK_ENTRY.findall((lock or "").replace("\r\n", "\n")))
    if not exact and len(locked) == 1:
        return RayRequirement(locked.pop(), specifiers)
    named = tuple(item for item in specifiers if _CLAUSE.match(item))
    return RayRequirement(None, named) if named else None


def permits(specifier: str, version: str) -> bool:
    """Return whether a version meets all clauses of a specifier (PEP 440). A clause that is not understood is met.

    Example:
        >>> permits("~=2.57.0", "2.57.3"), permits("==2.57.*", "2.58.0"), permits("!=2.57", "2.57.0")
        (True, False, False)
    """
    return all(_meets(operator, wanted, version) for operator, wanted in _CLAUSE.findall(specifier))


def _meets(operator: str, wanted: str, version: str) -> bool:
    if operator == "===":
        return wanted == version
    have, is_prefix = _version_key(version), wanted.endswith(".*")
    want = _version_key(wanted.removesuffix(".*"))
    if have is None or want is None:
        return True
    length = len(wanted.removesuffix(".*").split("."))
    match operator:
        case "==":
            return have[0][:length] == want[0][:length] if is_prefix else have == want
        case "!=":
            return have[0][:length] != want[0][:length] if is_prefix else have != want
        case "~=":
            return have >= want and have[0][: length - 1] == want[0][: length - 1]
        case ">=":
            return have >= want
        case "<=":
            return have <= want
        case ">":
            return have > want
    return have < want


def _version_key(version: str) -> tuple[tuple[int, ...], int, int] | None:
    match = _VERSION.fullmatch(version.strip())
    if match is None or len(match[0]) > 100:  # int() refuses very long numbers
        return None
    release = [int(part) for part in match[1].split(".")]
    phase = (match[2] or "").lower()
    return (*release, *([0] * (6 - len(release)))), _PHASES[phase], int(match[3] or 0)


def _ray_specifiers(requirements: Iterable[object]) -> Iterator[str]:
    """Yield the specifier, or the URL, of each requirement of Ray for Linux."""
    for item in requirements:
        match = _REQUIREMENT.fullmatch(item) if isinstance(item, str) else None
        if match is not None and _applies_to_linux(match["marker"] or ""):
            yield match["rest"].strip("() ")


def _applies_to_linux(marker: str) -> bool:
    if re.search(r"\bor\b", marker):
        return True
    return all((name in _LINUX_NAMES) == (operator == "==") for operator, name in _SYSTEM_CLAUSE.findall(marker))


def _declared(project: dict[str, Any], uv: dict[str, Any]) -> Iterator[object]:
    declared = table(project, "project")
    lists = [declared.get("dependencies"), uv.get("dev-dependencies"), uv.get("constraint-dependencies")]
    lists += table(declared, "optional-dependencies").values()
    lists += table(project, "dependency-groups").values()
    for requirements in lists:
        yield from items(requirements)


def _has_ray_source(uv: dict[str, Any]) -> bool:
    return any(_is_ray(name) for name in table(uv, "sources"))


def _source_requirement(uv: dict[str, Any]) -> RayRequirement | None:
    """Return the version of the wheel that a source of uv names. The version in a repository or folder is not known."""
    sources = [item for name, value in table(uv, "sources").items() if _is_ray(name) for item in items(value, value)]
    urls = [str(item.get("url") or item.get("path")) for item in sources if isinstance(item, dict)]
    found = {match[1] for url in urls if (match := _FILE_VERSION.search(f"/{url}"))}
    version = found.pop() if len(found) == 1 else None
    return None if version is None else RayRequirement(version, (f"=={version}",))


def _is_ray(name: object) -> bool:
    return isinstance(name, str) and name.lower() == "ray"
