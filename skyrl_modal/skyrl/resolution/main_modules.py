"""What a main of the checkout does, found by reading its source. Nothing is imported or executed."""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Callable, Iterator, Sequence

from attrs import define, field, frozen

from skyrl_modal.skyrl.resolution.records import EntrypointKind

#: Modules of SkyRL that are entrypoints, or that a main of the user's own builds on, with the layout of 2026 and the
#: older one (``skyrl_train``).
ENTRYPOINT_MODULES = {
    "skyrl.train.entrypoints.main_base": EntrypointKind.TRAIN,
    "skyrl_train.entrypoints.main_base": EntrypointKind.TRAIN,
    "skyrl.train.entrypoints.main_generate": EntrypointKind.GENERATE,
    "skyrl_train.entrypoints.main_generate": EntrypointKind.GENERATE,
    "skyrl.train.entrypoints.serve": EntrypointKind.SERVE,
    "skyrl.train.main_sft": EntrypointKind.SFT,
    "skyrl.tinker.api": EntrypointKind.TINKER,
}
#: Modules whose import shows the kind of a main. The first one that is found decides.
_KIND_OF_IMPORT = (
    ("skyrl.train.fully_async_trainer", EntrypointKind.FULLY_ASYNC),
    ("skyrl.train.fully_async_trainer_sim", EntrypointKind.FULLY_ASYNC),
    ("skyrl_train.fully_async_trainer", EntrypointKind.FULLY_ASYNC),
    ("skyrl.train.sft_trainer", EntrypointKind.SFT),
    ("skyrl.train.main_sft", EntrypointKind.SFT),
    ("skyrl.train.entrypoints.serve", EntrypointKind.SERVE),
    ("skyrl.train.entrypoints.main_generate", EntrypointKind.GENERATE),
    ("skyrl_train.entrypoints.main_generate", EntrypointKind.GENERATE),
    ("skyrl.tinker.api", EntrypointKind.TINKER),
    ("skyrl.train.entrypoints.main_base", EntrypointKind.TRAIN),
    ("skyrl_train.entrypoints.main_base", EntrypointKind.TRAIN),
)
#: Modules with the configuration of the trainers, of which a main with a training loop of its own imports the class.
_CONFIG_MODULES = ("skyrl.train.config", "skyrl.train.config.config", "skyrl_train.config", "skyrl_train.config.config")
_TRAIN_CONFIG = "SkyRLTrainConfig"
#: The field with the folder of checkpoints, which a program that only evaluates or prepares data does not read.
_CHECKPOINT_FIELD = "ckpt_path"
#: The class of an experiment in ``main_base``, and its method that replaces the training loop.
_EXPERIMENT = "BasePPOExp"
#: Configurations of SkyRL itself. A main with another one may accept further keys.
_CONFIGS = frozenset({"SkyRLTrainConfig", "SFTConfig"})
#: Methods of an experiment that create its engines and its trainer.
_PLACEMENT_METHODS = frozenset({"get_inference_client", "get_colocate_pg", "_setup_trainer"})
_DATASET_NAMES = ("dataset", "data_preprocess", "preprocess", "prepare", "make_data", "gen_data", "download_data")
_MAX_MODULES = 20
_MAX_SOURCE_BYTES = 1 << 20

#: Returns the source of a file below the root of a checkout; None if there is none.
ReadSource = Callable[[str], str | None]


@frozen
class MainModule:
    """What a main does.

    Attributes:
        kind: The entrypoint that it builds on.
        has_own_config: Whether it extends the configuration of that entrypoint.
        writes_results: Whether its training loop writes checkpoints and evaluations.
        has_own_placement: Whether it replaces the creation of its engines or its trainer, so that the fields of the
            configuration do not show which GPUs it needs.
    """

    kind: EntrypointKind
    has_own_config: bool = False
    writes_results: bool = True
    has_own_placement: bool = False


def read_main(path: str, read: ReadSource) -> MainModule:
    """Return what a main of the checkout does.

    Args:
        path: Its path below the root.
        read: Reads a file of the checkout.
    """
    known = ENTRYPOINT_MODULES.get(path.removesuffix(".py").replace("/", "."))
    if known is not None:
        return MainModule(known)
    sources = _Sources(read)
    sources.add(path, depth=0)
    trees = list(sources.trees.values())
    kind = next((kind for module, kind in _KIND_OF_IMPORT if module in sources.imported), None)
    if kind is None and _has_own_loop(sources):
        # How it uses GPUs is not known: it replaces SkyRL's experiment.
        return MainModule(EntrypointKind.TRAIN, _has_own_config(trees), has_own_placement=True)
    if kind is None:
        return MainModule(EntrypointKind.DATASET if _is_dataset_script(path) else EntrypointKind.OTHER)
    if kind is EntrypointKind.TRAIN and _replaces_run(trees[:1]):
        kind = EntrypointKind.GENERATE
    return MainModule(kind, _has_own_config(trees), not _has_loop_without_results(trees), _has_own_placement(trees))


@define
class _Sources:
    """A main and the modules beside it that it imports."""

    _read: ReadSource
    trees: dict[str, ast.Module] = field(factory=dict)
    imported: set[str] = field(factory=set)

    def add(self, path: str, depth: int) -> None:
        if path in self.trees or len(self.trees) >= _MAX_MODULES:
            return
        tree = _parse(self._read(path))
        if tree is None:
            return
        self.trees[path] = tree
        for module, names in _imports(tree, path):
            self.imported.add(module)
            self.imported.update(f"{module}.{name}" for name in names)
            # The modules of SkyRL itself are known. The user's own are followed.
            if depth < 2 and not module.startswith(("skyrl.", "skyrl_train.", "skyrl_gym.")):
                for file in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
                    self.add(file, depth + 1)
                    self.add(posixpath.join(posixpath.dirname(path), file), depth + 1)


def _has_own_loop(sources: _Sources) -> bool:
    """Return whether a main takes SkyRL's arguments, and writes checkpoints at their paths, without SkyRL's trainer."""
    if not any(f"{module}.{_TRAIN_CONFIG}" in sources.imported for module in _CONFIG_MODULES):
        return False
    names = {node.attr for tree in sources.trees.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {"from_cli_overrides", _CHECKPOINT_FIELD} <= names


def _parse(source: str | None) -> ast.Module | None:
    if source is None or len(source) > _MAX_SOURCE_BYTES:
        return None
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it is for another version of Python, or no Python
        return None


def _imports(tree: ast.Module, path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the modules that a file imports, with the names that it imports from them."""
    package = posixpath.dirname(path).split("/")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, [alias.name for alias in node.names]


def _is_dataset_script(path: str) -> bool:
    return any(word in posixpath.basename(path) for word in _DATASET_NAMES)


def _classes(trees: Sequence[ast.Module]) -> Iterator[ast.ClassDef]:
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield node


def _methods(node: ast.ClassDef) -> dict[str, ast.AST]:
    return {item.name: item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)}


def _base_names(node: ast.ClassDef) -> list[str]:
    return [_name(base) for base in node.bases]


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _replaces_run(trees: Sequence[ast.Module]) -> bool:
    """Return whether a main replaces the whole experiment, so that it has no trainer."""
    return any(
        _EXPERIMENT in _base_names(node) and "run" in _methods(node) and "get_trainer" not in _methods(node)
        for node in _classes(trees)
    )


def _has_loop_without_results(trees: Sequence[ast.Module]) -> bool:
    """Return whether a trainer replaces the training loop by one that saves nothing."""
    for node in _classes(trees):
        loop = _methods(node).get("train")
        if loop is None or not any(name.endswith("Trainer") for name in _base_names(node)):
            continue
        called = {_name(call.func) for call in ast.walk(loop) if isinstance(call, ast.Call)}
        if not any("save" in name or name in ("train", "eval", "evaluate") for name in called):
            return True
    return False


def _has_own_placement(trees: Sequence[ast.Module]) -> bool:
    return any(
        _EXPERIMENT in _base_names(node) and _PLACEMENT_METHODS & set(_methods(node)) for node in _classes(trees)
    )


def _has_own_config(trees: Sequence[ast.Module]) -> bool:
    configs = {
        _name(node.func.value)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_cli_overrides", "from_dict_config")
    }
    return not configs or not configs <= _CONFIGS
