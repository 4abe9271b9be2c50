"""Environment variables that a user declares: names that the run sets itself, and sizes that the system permits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from skyrl_modal.errors import SpecError

#: Size of one variable with its name, "=" and the null byte at its end: MAX_ARG_STRLEN of Linux in execve(2), for pages
#: of 4 KiB. Larger pages permit more, but the page size of the container is not known here.
MAX_VARIABLE_BYTES = 128 * 1024
#: Size of all arguments and variables of a program, each with its null byte and a pointer of 8 bytes: a quarter of the
#: limit on the stack (execve(2)), which is 8 MiB unless it was changed.
MAX_ENVIRONMENT_BYTES = 8 * 1024 * 1024 // 4
#: The part of it that is left for the arguments, among which is the command, and for variables that are not declared:
#: those of the machine or the image, and of the run.
RESERVED_BYTES = 256 * 1024
_POINTER_BYTES = 8

_SELF = "the run sets it. Set it in the command if it has to differ: {name}=VALUE COMMAND"
_GPUS = "the run sets it to the number of GPUs of a node. Pass gpu=, or set it in the command: NUM_GPUS=2 bash SCRIPT"
_CHECKOUT = "the run sets it to the path of the checkout in the container. Pass MountSpec(remote_path=...) to change it"
_VOLUME = "the run sets it to the path of the first volume. Pass VolumeSpec(mount_path=...) to change it"
_RAY = "the run sets it to that of its own Ray. Pass ray=None to use another Ray"
#: Why a variable cannot be declared, and what to do instead, by its name.
_ALWAYS_SET = {
    "SKYRL_RUN_ID": "the run sets it to its id. Use another name",
    "SKYRL_ATTEMPT": "the run sets it to the number of the attempt. Use another name",
    "SKYRL_MODAL_RUN_FOLDER": "the run sets it to the folder of its records. Use another name",
    "SKYRL_MODAL_STARTED_AT": "the run sets it to the time of its start. Use another name",
    "SKYRL_MODAL_SECRETS": "the run sets it to the names of its secrets. Use another name",
    "NUM_GPUS": _GPUS,
    "NUM_NODES": "the run sets it to the number of nodes. Pass nodes=",
    "NODE_RANK": _SELF,
    "MASTER_ADDR": _SELF,
    "MASTER_PORT": _SELF,
    "PYTHONUNBUFFERED": "the run sets it to 1. Set it in the command if it has to differ: PYTHONUNBUFFERED= COMMAND",
}
#: What to do instead on the command line and in files, where that differs.
_IN_SHELL = {
    "NUM_GPUS": _GPUS.replace("gpu=", "--gpu"),
    "NUM_NODES": "the run sets it to the number of nodes. Pass --nodes",
    "SKYRL_REPO_ROOT": "the run sets it to the path of the checkout in the container. A table of mounts without "
    "local_path sets that path",
    "SKYRL_DATA": "the run sets it to the path of the first volume. Pass --volume PATH=NAME to change it",
}
_SET_WITH_RAY = dict.fromkeys(("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"), _RAY)
_IN_SHELL |= dict.fromkeys(_SET_WITH_RAY, _RAY.replace("ray=None", "--no-ray"))


def variables_of_the_run(*, has_ray: bool, has_checkout: bool, has_volume: bool) -> dict[str, str]:
    """Return why each variable that a run sets cannot be declared, by its name.

    Args:
        has_ray: Whether the run starts Ray.
        has_checkout: Whether it has a checkout.
        has_volume: Whether it has a volume.

    Example:
        >>> "RAY_ADDRESS" in variables_of_the_run(has_ray=False, has_checkout=True, has_volume=True)
        False
    """
    reasons = {name: text.format(name=name) for name, text in _ALWAYS_SET.items()}
    if has_ray:
        reasons |= _SET_WITH_RAY
    if has_checkout:
        reasons["SKYRL_REPO_ROOT"] = _CHECKOUT
    if has_volume:
        reasons["SKYRL_DATA"] = _VOLUME
    return reasons


def check_names(field: str, variables: Mapping[str, str] | Iterable[str], reasons: Mapping[str, str]) -> None:
    """Check that no variable is declared which the run sets itself, so that no value is lost.

    Args:
        field: The field that an error names.
        variables: The declared variables, or only their names, if their values are secret or not known.
        reasons: The result of ``variables_of_the_run``.

    Raises:
        SpecError: The run sets one of them. The error contains its name, and no value.
    """
    for name in variables:
        # The run sets this value too, so it is not lost.
        is_equal = name == "PYTHONUNBUFFERED" and isinstance(variables, Mapping) and variables[name] == "1"
        if name in reasons and not is_equal:
            raise SpecError(field, name, reasons[name], shell_remedy=_IN_SHELL.get(name, ""))


def check_value(field: str, name: str, value: str) -> int:
    """Check that the system can pass a variable to a program.

    Args:
        field: The field that an error names.
        name: The variable.
        value: Its value, which an error does not contain.

    Returns:
        Its size in bytes as it counts for ``MAX_ENVIRONMENT_BYTES``.

    Raises:
        SpecError: It contains a null character or one that is not Unicode, or is too large.
    """
    if "\0" in value:
        raise SpecError(field, name, "its value contains a null character, which no variable can contain")
    try:
        size = len(name) + 1 + len(value.encode("utf-8", "surrogateescape")) + 1
    except UnicodeEncodeError:
        raise SpecError(field, name, "its value contains a character that cannot be encoded as UTF-8") from None
    if size > MAX_VARIABLE_BYTES:
        raise SpecError(
            field,
            name,
            f"it has {size:,} bytes with its name, and Linux permits {MAX_VARIABLE_BYTES:,}. Write the value to a file "
            "of the checkout or of a volume, and pass the path",
        )
    return size + _POINTER_BYTES


def check_total(field: str, size: int) -> None:
    """Check that the system can pass all declared variables to one program.

    Args:
        field: The field that an error names.
        size: The sum of the sizes that ``check_value`` returned.

    Raises:
        SpecError: They are too large together.
    """
    limit = MAX_ENVIRONMENT_BYTES - RESERVED_BYTES
    if size > limit:
        raise SpecError(
            field,
            f"{size:,} bytes",
            f"the declared variables may have {limit:,} bytes together: Linux permits {MAX_ENVIRONMENT_BYTES:,} for "
            "all variables and arguments of a program, of which a part is left for the command and for the variables "
            "of the container. Write large values to files",
        )
