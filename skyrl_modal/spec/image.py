"""The container's image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from attrs import Attribute, field, frozen

from skyrl_modal.errors import SpecError
from skyrl_modal.spec.fields import check_texts, to_env, to_tuple

#: The image that is used where the checkout pins no Ray that a published image has.
DEFAULT_IMAGE = "novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"


#: Published images by the Ray version inside, as listed by the SkyRL project in August 2026. A new image is a new line.
IMAGE_BY_RAY_VERSION: Mapping[str, str] = {
    "2.48.0": "novaskyai/skyrl-train-ray-2.48.0-py3.12-cu12.8",
    "2.51.1": DEFAULT_IMAGE,
    "2.56.0": "novaskyai/skyrl-train-ray-2.56.0-py3.12-cu12.8",
    "2.57.0": "novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0",
}


@frozen(kw_only=True)
class ImageSpec:
    """The container's image: a base from a registry and layers on it.

    Attributes:
        base: Image in a registry. None: the published SkyRL image whose Ray the checkout pins.
        apt: Debian packages.
        pip: Python packages, in pip's notation.
        commands: Shell commands, each a layer, run as the image is built.
        env: Variables of the image. ``SKYRL_REPO_ROOT=/root/SkyRL`` is always set.
        python: Python version to add to a base that has none, for example ``"3.12"``.
        registry_secret: Name of a Modal secret with ``REGISTRY_USERNAME`` and ``REGISTRY_PASSWORD``.

    Example:
        >>> ImageSpec(pip=["wandb"]).pip
        ('wandb',)
    """

    base: str | None = field(default=None)
    apt: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    pip: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    commands: Sequence[str] = field(default=(), converter=to_tuple, validator=check_texts)
    env: Mapping[str, str] = field(factory=dict, converter=to_env)
    python: str | None = field(default=None)
    registry_secret: str | None = None

    @base.validator
    def _check_base(self, attribute: Attribute[str | None], value: object) -> None:
        if value is not None and (not isinstance(value, str) or not value.strip() or re.search(r"\s", value)):
            raise SpecError("base", value, 'give an image such as "novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"')

    @python.validator
    def _check_python(self, attribute: Attribute[str | None], value: object) -> None:
        if value is not None and (not isinstance(value, str) or not re.fullmatch(r"3\.\d{1,2}", value)):
            raise SpecError("python", value, 'give a minor version such as "3.12", or None for the base\'s own')

    def resolved_base(self, ray_version: str | None) -> tuple[str, str | None]:
        """The base image for a checkout that pins a version of Ray.

        Args:
            ray_version: The version that the checkout pins, None where it pins none.

        Returns:
            The image, and a warning where its Ray may not be the pinned one (None where all is well).

        Example:
            >>> ImageSpec().resolved_base("2.57.0")
            ('novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0', None)
        """
        if self.base is not None:
            return self.base, None
        if ray_version is None:
            return DEFAULT_IMAGE, None
        if ray_version in IMAGE_BY_RAY_VERSION:
            return IMAGE_BY_RAY_VERSION[ray_version], None
        return DEFAULT_IMAGE, (
            f"the checkout pins ray=={ray_version}, for which no published SkyRL image is known here "
            f"(known: {', '.join(IMAGE_BY_RAY_VERSION)}); {DEFAULT_IMAGE} is used, and a driver with another version of Ray "
            "will be refused by its cluster. Give ImageSpec(base=...) an image with the pinned version."
        )
