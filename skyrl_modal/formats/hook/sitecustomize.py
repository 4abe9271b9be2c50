"""Executed by every Python process of a run at its start, since this folder is in front of PYTHONPATH.

It is written for Python 3.9 and later. It does nothing without the variables of the run, and no error of it reaches the
program. Afterwards, the folder is not on ``sys.path``, and the module ``sitecustomize`` is the one that would have been
loaded without this folder, or there is none: a program finds what it would find otherwise. Child processes load this
file again, because PYTHONPATH is not changed.

What takes time is in ``instrumentation.py``, which is loaded by the first import of a module in ``_INSTRUMENTED``.
"""

import os
import sys

TYPE_CHECKING = False  # the same as in typing, whose import takes time

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

#: Set by ``container/environment.py``.
_RUN_FOLDER = "SKYRL_MODAL_RUN_FOLDER"
#: Set only for runs that have a limit for stalled attempts.
_STACKS = "SKYRL_MODAL_STACKS"
_FOLDER = os.path.dirname(__file__)
#: Modules whose functions log metrics or receive rollouts: ``instrumentation.PATCHES`` has a function for each.
_INSTRUMENTED = frozenset(
    (
        "skyrl.train.trainer",
        "skyrl.train.utils.tracking",
        "skyrl_train.trainer",
        "skyrl_train.utils.tracking",
        "tensorboardX.writer",
        "tinker_cookbook.utils.ml_log",
        "torch.utils.tensorboard.writer",
        "wandb.sdk.wandb_run",
    )
)
_PACKAGE = "skyrl_modal"


class _ImportHook:
    """A finder that lets others find modules, and instruments those in ``_INSTRUMENTED`` after they were executed.

    It also finds the package that this file belongs to if there is no other, for ``skyrl_modal.log_metrics``.
    """

    def __init__(self) -> None:
        self._searched: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Return the spec that the other finders return."""
        if (name not in _INSTRUMENTED and name != _PACKAGE) or name in self._searched:
            return None
        self._searched.add(name)  # another finder of this kind may call this one
        try:
            spec = self._find(name, path, target)
        finally:
            self._searched.discard(name)
        try:
            if name == _PACKAGE:
                return spec if spec is not None else _own_package()
            if spec is not None:
                _instrument_after_execution(name, spec.loader)
        except Exception:  # the program imports the module without this hook
            return spec
        return spec

    def _find(self, name: str, path: object, target: object) -> "ModuleSpec | None":
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                return spec
        return None


def _own_package() -> "ModuleSpec | None":
    from importlib.util import spec_from_file_location

    package = os.path.dirname(os.path.dirname(_FOLDER))
    init = os.path.join(package, "__init__.py")
    return spec_from_file_location(_PACKAGE, init, submodule_search_locations=[package])


def _instrument_after_execution(name: str, loader: "Any") -> None:
    """Instrument a module when its loader has executed it. The loader remains what it is, with its own methods."""
    execute = loader.exec_module

    def exec_module(module: "ModuleType") -> object:
        if module.__name__ != name:  # a loader of several modules, such as that of an archive
            return execute(module)
        vars(loader).pop("exec_module", None)  # this function; the method of the class is visible again
        execute(module)
        _instrument(name, module)
        return None

    loader.exec_module = exec_module


def _instrument(name: str, module: "ModuleType") -> None:
    try:
        key = "_skyrl_modal_instrumentation"
        instrumentation = sys.modules.get(key)
        if instrumentation is None:
            from importlib.util import module_from_spec, spec_from_file_location

            spec: Any = spec_from_file_location(key, os.path.join(_FOLDER, "instrumentation.py"))
            instrumentation = module_from_spec(spec)
            spec.loader.exec_module(instrumentation)
            sys.modules[key] = instrumentation
        instrumentation.PATCHES[name](module)
    except Exception:  # the program continues without metrics
        return


def _register_stacks(path: str) -> None:
    """Let SIGUSR2 write the stacks of all threads to a file. An open file shows that a process has registered it."""
    import faulthandler
    import signal

    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)


def _install() -> None:
    try:
        if os.environ.get(_RUN_FOLDER):
            sys.meta_path.insert(0, _ImportHook())
            for name in _INSTRUMENTED.intersection(sys.modules):  # imported by a .pth file
                _instrument(name, sys.modules[name])
            if os.environ.get(_STACKS):
                _register_stacks(os.environ[_STACKS])
    except Exception:  # the program starts without the hook
        return


if __name__ == "sitecustomize":  # executed by Python at its start, and not imported as a module of the package
    _install()
    # Load the sitecustomize that this file hides, as if this one did not exist. If there is none, ``site`` ignores the
    # ImportError, as it does without this file.
    sys.path[:] = [entry for entry in sys.path if entry != _FOLDER]
    sys.modules.pop("sitecustomize", None)
    __import__("sitecustomize")
