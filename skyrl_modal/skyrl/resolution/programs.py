"""The Python program that a call starts, directly or through uv, torchrun and others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from skyrl_modal.skyrl.uv_run import OPTIONS_WITH_VALUE

_PYTHON = re.compile(r"python(\d(\.\d+)?)?")
#: Options of Python with a value (Python 3.14).
_PYTHON_OPTIONS_WITH_VALUE = frozenset({"-W", "-X", "--check-hash-based-pycs"})
#: Programs that start a Python program on several GPUs.
_LAUNCHERS = frozenset({"torchrun", "accelerate", "deepspeed"})
_LAUNCHER_MODULES = frozenset({"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch"})
_OVERRIDE = re.compile(r"[A-Za-z_+~][\w.+/-]*=", re.ASCII)


@frozen
class PythonProgram:
    """A Python program with its arguments.

    Attributes:
        name: A module's name, or a path as it was given.
        is_module: Whether it is a module (``-m``).
        arguments: Its arguments.
        extras: The extras that uv installs.
        env_files: The files with variables that uv reads.
        uses_uv: Whether uv starts it.
    """

    name: str
    is_module: bool
    arguments: Sequence[str] = ()
    extras: tuple[str, ...] = ()
    env_files: tuple[str, ...] = ()
    uses_uv: bool = False

    def overrides(self) -> dict[str, str]:
        """Return the ``key=value`` arguments. The last one of a key wins."""
        return dict(word.split("=", 1) for word in self.arguments if _OVERRIDE.match(word))

    def flags(self) -> dict[str, str]:
        """Return the ``--name value`` and ``--name=value`` arguments, without the dashes."""
        flags: dict[str, str] = {}
        for number, word in enumerate(self.arguments):
            if word.startswith("--") and len(word) > 2:
                name, equals, value = word[2:].partition("=")
                if not equals and number + 1 < len(self.arguments) and not self.arguments[number + 1].startswith("--"):
                    value = self.arguments[number + 1]
                flags[name] = value
        return flags


@frozen
class _UvOptions:
    extras: list[str] = field(factory=list)
    env_files: list[str] = field(factory=list)


def python_program(argv: Sequence[str]) -> PythonProgram | None:
    """Return the Python program that a call starts; None if it starts none.

    Example:
        >>> python_program(["uv", "run", "--isolated", "--extra", "fsdp", "-m", "skyrl.train.main_sft", "seed=1"]).name
        'skyrl.train.main_sft'
        >>> python_program(["torchrun", "--nproc-per-node", "2", "train.py", "--lr", "1"]).arguments
        ['--lr', '1']
    """
    name = argv[0].rpartition("/")[2] if argv else ""
    if name == "uv":
        return _program_of_uv(list(argv[1:]))
    if _PYTHON.fullmatch(name):
        return _program_of_python(list(argv[1:]))
    if name in _LAUNCHERS:
        return _program_of_launcher(list(argv[1:]))
    if name == "ray" and list(argv[1:3]) == ["job", "submit"] and "--" in argv:
        return python_program(argv[list(argv).index("--") + 1 :])
    if name.endswith(".py"):
        return PythonProgram(argv[0], False, list(argv[1:]))
    return None


def _program_of_uv(rest: list[str]) -> PythonProgram | None:
    options = _UvOptions()
    is_run = False
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("-m", "--module") and is_run:
            module = value if equals else rest.pop(0) if rest else ""
            return _with_uv(PythonProgram(module, True, rest), options)
        if name in OPTIONS_WITH_VALUE:
            value = value if equals else rest.pop(0) if rest else ""
            if name == "--extra":
                options.extras.append(value)
            elif name == "--env-file":
                options.env_files.append(value)
        elif word == "--":
            continue
        elif not word.startswith("-"):
            if is_run:
                program = python_program([word, *rest])
                return None if program is None else _with_uv(program, options)
            if word != "run":
                return None
            is_run = True
    return None


def _with_uv(program: PythonProgram, options: _UvOptions) -> PythonProgram:
    return PythonProgram(
        program.name,
        program.is_module,
        program.arguments,
        tuple(options.extras),
        tuple(options.env_files),
        uses_uv=True,
    )


def _program_of_python(rest: list[str]) -> PythonProgram | None:
    while rest:
        word = rest.pop(0)
        if word == "-m" and rest:
            module = rest.pop(0)
            return _program_of_launcher(rest) if module in _LAUNCHER_MODULES else PythonProgram(module, True, rest)
        if word in ("-c", "-", "-m"):
            return None
        if word in _PYTHON_OPTIONS_WITH_VALUE:
            rest = rest[1:]
        elif not word.startswith("-"):
            return PythonProgram(word, False, rest)
    return None


def _program_of_launcher(rest: list[str]) -> PythonProgram | None:
    for number, word in enumerate(rest):
        if word in ("-m", "--module") and number + 1 < len(rest):
            return PythonProgram(rest[number + 1], True, rest[number + 2 :])
        if word.endswith(".py"):
            return PythonProgram(word, False, rest[number + 1 :])
    return None


def flatten(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested tables as one, with the names joined by dots.

    Example:
        >>> flatten({"trainer.placement": {"colocate_all": True}})
        {'trainer.placement.colocate_all': True}
    """
    flat: dict[str, object] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = item
    return flat
