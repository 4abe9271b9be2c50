"""The container's image on Modal."""

from __future__ import annotations

import modal

from skyrl_modal.spec.image import ImageSpec

#: ``SKYRL_REPO_ROOT`` in the image of a run without a checkout: where SkyRL's own scripts expect it.
DEFAULT_REPO_ROOT = "/root/SkyRL"


def build_image(base: str, spec: ImageSpec, repo_root: str | None, registry: modal.Secret | None) -> modal.Image:
    """Return the definition of an image without its mounts, which are added last: a changed file rebuilds no layer.

    Args:
        base: The base image.
        spec: The layers on it.
        repo_root: Path of the checkout in the container; None for no checkout.
        registry: Credentials of the base image's registry; None for a public image.
    """
    image = modal.Image.from_registry(base, secret=registry, add_python=spec.python).entrypoint([])
    if spec.apt:
        image = image.apt_install(*spec.apt)
    if spec.pip:
        image = image.pip_install(*spec.pip)
    if spec.commands:
        image = image.run_commands(*spec.commands)
    return image.env({**spec.env, "SKYRL_REPO_ROOT": repo_root or DEFAULT_REPO_ROOT})
