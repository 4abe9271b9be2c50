"""What a declared field is for the command line and for configuration files.

A field with an ``Option`` in its metadata has a key in configuration files, and a command line option unless its
``flag`` is None. The texts of ``--help``, of the documentation and of the JSON schema are generated from it.
"""

from __future__ import annotations

from collections.abc import Mapping

from skyrl_modal.dataclass import dataclass

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from typing import Literal

    Kind = Literal[
        "text", "choice", "path", "flag", "whole", "number", "duration", "list", "codes", "gpus", "variables",
        "mounts", "volumes", "buckets", "secrets", "url",
    ]  # fmt: skip

#: The key of a field's metadata.
OPTION = "option"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The command line option and the key in configuration files of a field.

    Attributes:
        help: What the value is for, without its default.
        kind: Which values it has.
        flag: Its name on the command line; None for a field without one, empty for the field's name.
        default: The default as a text, where the declared one is None or is computed.
        variable: The environment variable with the value if no option has it; empty for none.
        choices: The values of the kind ``choice``.
        section: The heading below which ``--help`` lists it.
        metavar: What ``--help`` shows for the value; empty for that of the kind.
    """

    help: str
    kind: Kind = "text"
    flag: str | None = ""
    default: str = ""
    variable: str = ""
    choices: tuple[str, ...] = ()
    section: str = "Environment"
    metavar: str = ""


def option(
    text: str,
    kind: Kind = "text",
    *,
    flag: str | None = "",
    default: str = "",
    variable: str = "",
    choices: tuple[str, ...] = (),
    section: str = "Environment",
    metavar: str = "",
) -> Mapping[str, Option]:
    """Return the metadata of a field. The arguments are the attributes of ``Option``.

    Example:
        >>> option("Number of nodes.", "whole")["option"].kind
        'whole'
    """
    made = Option(
        help=text,
        kind=kind,
        flag=flag,
        default=default,
        variable=variable,
        choices=choices,
        section=section,
        metavar=metavar,
    )
    return {OPTION: made}
