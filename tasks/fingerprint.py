"""Digests of code: what a stage would do differently if a line of it, or of what it calls, were changed."""

import ast
import functools
import hashlib
import importlib.metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_CODE = {
    "tasks.config",
    "tasks.curves",
    "tasks.engine",
    "tasks.errors",
    "tasks.estimate",
    "tasks.memory",
    "tasks.parent",
    "tasks.progress",
}
"""Settings are part of the key as values; the wording of an error, the look of a plot, a forecast, or what a shard is
worked on with is no reason to train again."""


def code_digests(module: str) -> dict[str, str]:
    """Digest of `module` and of every module of ours that it imports, directly or not, by name.

    Comments and layout do not count.  Whoever imports a package depends on all of its files, because what is chosen by
    name is not visible as an import.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name in NOT_CODE:
            continue
        found[name], imported = _read(name)
        waiting.extend(imported)
    return dict(sorted(found.items()))


def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Installed version of each library; a local build mark such as +cpu does not count."""
    return {library: importlib.metadata.version(library).split("+")[0] for library in libraries}


@functools.cache
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    """The digest of a module and the modules of ours that it names."""
    path = _path(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {name for node in ast.walk(tree) for name in _imports(node) if _exists(name)}
    if path.name == "__init__.py" and path.parent != ROOT / "tasks":
        imported |= {f"{module}.{file.stem}" for file in path.parent.glob("*.py") if file.stem != "__init__"}
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16], tuple(sorted(imported - {"tasks"}))


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _exists(module: str) -> bool:
    return module.split(".")[0] == "tasks" and _path(module).exists()


def _path(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
