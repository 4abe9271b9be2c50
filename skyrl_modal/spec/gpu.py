"""GPU requests."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence

from skyrl_modal.declaration import frozen
from skyrl_modal.errors import SpecError

#: GPU names that Modal documents (https://modal.com/docs/guide/gpu), or that its users have recorded. Modal adds types
#: from time to time: another name is accepted with a warning, also if it resembles one of these.
KNOWN_GPUS = (
    "T4", "L4", "A10", "A10G", "L40", "L40S", "A100", "A100-40GB", "A100-80GB", "RTX-PRO-6000",
    "H100", "H100!", "H200", "B200", "B200+", "B300", "GH200", "GB200", "GB300", "ANY",
)  # fmt: skip

#: A name has no character that separates requests, or a name from its count, and no control character.
_GPU_NAME = r"[^\s:,\x00-\x1f\x7f]+"
_REMEDY = 'write NAME or NAME:COUNT with a count of at least 1, for example "A100-80GB:4"'


@frozen
class GpuRequest:
    """A GPU type and the number of GPUs.

    Attributes:
        name: Its name on Modal, for example ``"A100-80GB"``.
        count: Number of GPUs in one container, at least 1.
    """

    name: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"


def parse_gpu(value: str | Sequence[str] | None) -> tuple[GpuRequest, ...]:
    """Parse a GPU request.

    Args:
        value: ``"A100:4"``, ``"L4"``, several in order of preference, or None for no GPU.

    Returns:
        The requests in order of preference; empty for None.

    Raises:
        SpecError: The text is not ``NAME`` or ``NAME:COUNT``.

    Example:
        >>> parse_gpu(["H100:8", "A100-80GB:8"])
        (GpuRequest(name='H100', count=8), GpuRequest(name='A100-80GB', count=8))
    """
    if value is None:
        return ()
    if not isinstance(value, Iterable):
        raise SpecError("gpu", value, _REMEDY)
    items = [value] if isinstance(value, str) else list(value)
    if not items:
        remedy = 'pass at least one request such as "L4:1", or {} for no GPU'
        raise SpecError("gpu", value, remedy.format("None"), shell_remedy=remedy.format("none"))
    requests = []
    for item in items:
        if not isinstance(item, str):
            raise SpecError("gpu", value, _REMEDY)
        name, colon, count = item.strip().partition(":")
        if not re.fullmatch(_GPU_NAME, name) or (colon and not re.fullmatch(r"[1-9]\d{0,3}", count)):
            raise SpecError("gpu", value, _REMEDY)
        requests.append(GpuRequest(name.upper(), int(count) if colon else 1))
    return tuple(requests)


def check_gpu_names(value: str | Sequence[str] | None) -> str | Sequence[str] | None:
    """Validate a GPU request, and warn about names that are not known.

    Raises:
        SpecError: The request cannot be parsed.
    """
    for request in parse_gpu(value):
        if request.name in KNOWN_GPUS:
            continue
        from difflib import get_close_matches  # imported here, since nearly all names are known

        near = get_close_matches(request.name, KNOWN_GPUS, n=3, cutoff=0.7)
        question = f"Did you mean {' or '.join(near)}? " if near else ""
        warnings.warn(
            f"{request} is requested, and {request.name} is not a known GPU type. {question}It is passed "
            f"to Modal, which refuses types that it does not have. Known types: {', '.join(KNOWN_GPUS)}",
            stacklevel=4,
        )
    return value if value is None or isinstance(value, str) else tuple(value)
