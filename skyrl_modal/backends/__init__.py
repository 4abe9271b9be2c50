"""Backends execute runs. They are chosen by name, or passed as an object that implements ``Backend``.

The protocols and records are loaded on first use: a launcher is declared with a name, which needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skyrl_modal.errors import BackendUnavailable, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.metadata import EntryPoints

    from skyrl_modal.backends.base import Backend as Backend
    from skyrl_modal.backends.base import Execution as Execution
    from skyrl_modal.backends.base import NodeRates as NodeRates
    from skyrl_modal.backends.base import StoredFile as StoredFile
    from skyrl_modal.backends.base import VolumeEntry as VolumeEntry
    from skyrl_modal.protocol.job import Job
    from skyrl_modal.spec.run_spec import RunSpec

    #: A check of a run like ``Backend.check``: it returns warnings, or raises an error.
    RunCheck = Callable[[Job, RunSpec], Sequence[str]]
    #: Returns what one node of a run costs; None if the backend does not know it.
    FindRates = Callable[[RunSpec], NodeRates | None]

__all__ = [
    "Backend",
    "Execution",
    "StoredFile",
    "VolumeEntry",
    "check_backend",
    "get_backend",
    "installed_backends",
    "rates_of_plan",
    "rates_of_run",
    "run_check",
]

#: A package adds a backend by an entry point in this group. It refers to a class or function without arguments that
#: returns an object with the Backend protocol.
ENTRY_POINT_GROUP = "skyrl_modal.backends"

#: The backends of this package, which are also entry points. They are found here without reading the metadata of every
#: installed package (some milliseconds), and where this package has no metadata, as in a container.
BUILT_IN_BACKENDS = {
    "modal": "skyrl_modal.backends.modal:ModalBackend",
    "local": "skyrl_modal.backends.local:LocalBackend",
}

#: The part of ``Backend.check`` that needs no client of another package, whose import takes longer than a plan.
_CHECKS_OF_PLANS = {"modal": "skyrl_modal.backends.modal.run_checks:check_run"}
#: Rates of runs as they are known without a request.
_RATES_OF_PLANS = {"modal": "skyrl_modal.backends.modal.rates:stored_node_rates"}


def __getattr__(name: str) -> Any:
    if name not in ("Backend", "Execution", "VolumeEntry"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("skyrl_modal.backends.base"), name)
    globals()[name] = value
    return value


def get_backend(name: str) -> Backend:
    """Return the backend with a name.

    Args:
        name: ``"modal"``, ``"local"``, or the name of an entry point in the group ``skyrl_modal.backends``.

    Raises:
        SpecError: No backend has this name.
        BackendUnavailable: The backend cannot be imported or created.
    """
    if name in BUILT_IN_BACKENDS:
        module, _, attribute = BUILT_IN_BACKENDS[name].partition(":")
        try:
            built_in: Backend = getattr(import_module(module), attribute)()
        except Exception as error:  # for example, Modal's client raises one if ~/.modal.toml is damaged
            raise BackendUnavailable(name, str(error).strip() or type(error).__name__) from error
        return built_in
    for entry_point in _entry_points().select(name=name):
        try:
            backend: Backend = entry_point.load()()
        except Exception as error:  # any error of another package: it may affect only runs on its own backend
            raise BackendUnavailable(name, f"{entry_point.value} failed: {type(error).__name__}: {error}") from error
        return backend
    raise _unknown_backend(name)


def installed_backends() -> list[str]:
    """Return the names of the built-in backends, then those of other packages.

    Example:
        >>> installed_backends()[:2]
        ['modal', 'local']
    """
    others = sorted(_entry_points().names - set(BUILT_IN_BACKENDS))
    return [*BUILT_IN_BACKENDS, *others]


def run_check(backend: str | Backend) -> RunCheck:
    """Return the check of a run that a plan makes: that of the backend, without its client and its credentials.

    Args:
        backend: A name, or an object that implements ``Backend``.

    Raises:
        SpecError: No backend has this name.
        BackendUnavailable: The backend cannot be imported or created.
    """
    if not isinstance(backend, str):
        return backend.check
    if backend not in _CHECKS_OF_PLANS:
        return get_backend(backend).check
    module, _, function = _CHECKS_OF_PLANS[backend].partition(":")
    check: RunCheck = getattr(import_module(module), function)
    return check


def rates_of_plan(backend: str | Backend) -> FindRates | None:
    """Return what finds the rate of a run without a request; None if the backend has no rates without one."""
    if not isinstance(backend, str) or backend not in _RATES_OF_PLANS:
        return None
    module, _, function = _RATES_OF_PLANS[backend].partition(":")
    find: FindRates = getattr(import_module(module), function)
    return find


def rates_of_run(backend: Backend) -> FindRates | None:
    """Return what finds the rate of a run, with a request if needed; None if the backend has no rates."""
    find: FindRates | None = getattr(backend, "node_rates", None)
    return find


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # imported here, since built-in backends do not need it

    return entry_points(group=ENTRY_POINT_GROUP)


def check_backend(value: object) -> None:
    """Validate a name of a backend, or an object that implements Backend.

    Raises:
        SpecError: It is neither.
    """
    if isinstance(value, str):
        if value not in BUILT_IN_BACKENDS and value not in installed_backends():
            raise _unknown_backend(value)
    elif not hasattr(value, "start"):
        raise _unknown_backend(value)


def _unknown_backend(value: Any) -> SpecError:
    from difflib import get_close_matches  # imported here, since it is needed for errors only

    names = installed_backends()
    near = get_close_matches(value, names, n=1) if isinstance(value, str) else []
    question = f"Did you mean {near[0]}? " if near else ""
    remedy = f"{question}Installed backends: {', '.join(names)}"
    objects = "In Python, an object that implements skyrl_modal.backends.Backend can be passed too"
    return SpecError("backend", value, f"{remedy}. {objects}", shell_remedy=remedy)
