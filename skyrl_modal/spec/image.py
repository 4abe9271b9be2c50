"""The container's image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skyrl_modal.declaration import Attribute, field, frozen
from skyrl_modal.errors import SpecError
from skyrl_modal.spec.fields import check_optional_name, check_strings, check_unicode, to_env, to_strings
from skyrl_modal.spec.option import option
from skyrl_modal.spec.shown import Shown

if TYPE_CHECKING:
    from skyrl_modal.spec.image_steps import ImageStep

#: The image for a checkout that pins no version of Ray, or one that no published image contains.
DEFAULT_IMAGE = "novaskyai/skyrl-train-ray-2.51.1-py3.12-cu12.8"

#: Published images by the Ray version inside, as listed by the SkyRL project in August 2026. A new image is a new line.
IMAGE_BY_RAY_VERSION: Mapping[str, str] = {
    "2.48.0": "novaskyai/skyrl-train-ray-2.48.0-py3.12-cu12.8",
    "2.51.1": DEFAULT_IMAGE,
    "2.56.0": "novaskyai/skyrl-train-ray-2.56.0-py3.12-cu12.8",
    "2.57.0": "novaskyai/skyrl-train-ray-2.57.0-py3.12-cu13.0",
}
#: The version of Ray in the names of images of SkyRL (``skyrl-train-ray-2.51.1-py3.12``) and of Ray (``ray:2.51.1``).
_RAY_IN_NAME = r"(?:^|/)(?:skyrl-[a-z]+-ray-|ray(?:-ml|-llm)?:)(\d+\.\d+\.\d+)(?![\w.])"
#: Packages of ImageSpec.pip with which another version of Ray may be installed.
_MAY_REPLACE_RAY = r"(?i)\s*(?:ray|skyrl[\w-]*)(?![\w.-])|\s*-|.*[/@]"


# The classes of the steps are loaded where an image has steps.
def _to_steps(value: Any) -> Any:
    if value == ():
        return value
    from skyrl_modal.spec.image_steps import to_steps

    return to_steps(value)


def _check_steps(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value != ():
        from skyrl_modal.spec.image_steps import check_steps

        check_steps(instance, attribute, value)


def _may_install_ray(steps: Sequence[ImageStep]) -> bool:
    """Return whether one of the steps may install another Ray."""
    if not steps:
        return False
    from skyrl_modal.spec.image_steps import PipInstall, RunCommands

    return any(isinstance(step, PipInstall | RunCommands) for step in steps)


@frozen(kw_only=True)
class ImageSpec(Shown):
    """The container's image: a base image from a registry, and layers on it.

    Attributes:
        base: Image in a registry. None: the published SkyRL image whose Ray version the checkout pins.
        apt: Debian packages to install.
        pip: Python packages to install, in pip's notation.
        commands: Shell commands to run while the image is built, one layer each.
        steps: Further steps, in their order, after ``apt``, ``pip`` and ``commands``: ``AptInstall``, ``PipInstall``,
            ``RunCommands``, ``SetEnv``, ``SetWorkdir``, ``CopyFiles`` and ``UvSync``.
        env: Environment variables of the image. ``SKYRL_REPO_ROOT=/root/SkyRL`` is always set.
        python: Python version to add to a base image that has none, for example ``"3.12"``.
        registry_secret: Name of a Modal secret with ``REGISTRY_USERNAME`` and ``REGISTRY_PASSWORD``.

    Example:
        >>> ImageSpec(pip=["wandb"]).pip
        ('wandb',)
    """

    base: str | None = field(
        default=None,
        metadata=option(
            "Image in a registry (Modal).",
            flag="--image",
            default="the published SkyRL image whose Ray version the checkout pins",
        ),
    )
    apt: Sequence[str] = field(
        default=(),
        converter=to_strings,
        validator=[check_strings, check_unicode],
        metadata=option(
            "Debian package to add to the image (Modal).", "list", flag="--apt", default="none", metavar="PACKAGE"
        ),
    )
    pip: Sequence[str] = field(
        default=(),
        converter=to_strings,
        validator=[check_strings, check_unicode],
        metadata=option(
            "Python package to add to the image, in pip's notation (Modal).",
            "list",
            flag="--pip",
            default="none",
            metavar="PACKAGE",
        ),
    )
    commands: Sequence[str] = field(
        default=(),
        converter=to_strings,
        validator=[check_strings, check_unicode],
        metadata=option("Shell commands to run while the image is built (Modal).", "list", flag=None, default="none"),
    )
    steps: Sequence[ImageStep] = field(default=(), converter=_to_steps, validator=_check_steps)
    env: Mapping[str, str] = field(
        factory=dict,
        converter=to_env,
        validator=check_unicode,
        metadata=option("Variables of the image (Modal).", "variables", flag=None, default="none"),
    )
    python: str | None = field(
        default=None,
        metadata=option(
            "Python version to add to an image that has none, such as 3.12 (Modal).",
            flag=None,
            default="the image's own",
        ),
    )
    registry_secret: str | None = field(
        default=None,
        validator=check_optional_name,
        metadata=option(
            "Name of a Modal secret with the registry's user name and password (Modal).", flag=None, default="none"
        ),
    )

    @base.validator
    def _check_base(self, attribute: Attribute[str | None], value: object) -> None:
        if value is not None and (not isinstance(value, str) or not value.strip() or re.search(r"\s", value)):
            raise SpecError("base", value, f'pass an image such as "{DEFAULT_IMAGE}"')
        check_unicode(self, attribute, value)

    @python.validator
    def _check_python(self, attribute: Attribute[str | None], value: object) -> None:
        if value is not None and (not isinstance(value, str) or not re.fullmatch(r"3\.\d{1,2}", value)):
            remedy = 'pass a minor version such as "3.12"'
            own = "for the base image's own"
            raise SpecError("python", value, f"{remedy}, or None {own}", shell_remedy=f"{remedy}, or omit it {own}")

    def resolved_base(self, ray_version: str | None) -> tuple[str, str | None]:
        """Return the base image for a checkout.

        Args:
            ray_version: The version of Ray that the checkout pins; None if it pins none.

        Returns:
            The image, and a warning if it may contain another version of Ray (else None).

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
            f"the checkout pins ray=={ray_version}, but no published SkyRL image is known to contain it (known: "
            f"{', '.join(IMAGE_BY_RAY_VERSION)}); using {DEFAULT_IMAGE}. A driver with another version of Ray cannot "
            "connect to its cluster"
        )

    def ray_version_in(self, base: str) -> str | None:
        """Return the version of Ray in the image with a base, by the base's name; None if it is not known.

        Example:
            >>> ImageSpec().ray_version_in("rayproject/ray:2.51.1-py312-cpu")
            '2.51.1'
            >>> ImageSpec(pip=["ray==2.57.0"]).ray_version_in("rayproject/ray:2.51.1-py312-cpu") is None
            True
        """
        match = re.search(_RAY_IN_NAME, base)
        if match is None or self.commands or _may_install_ray(self.steps):
            return None
        if any(re.match(_MAY_REPLACE_RAY, package) for package in self.pip):
            return None
        return match[1]
