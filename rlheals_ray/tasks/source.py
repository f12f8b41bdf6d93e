"""The code that a task of one's own is made of, so that a changed judge is noticed without a version number.

Counted are the task's module and whatever modules beside it (in its directory or below; in its package, where it is
installed) it imports, directly or through each other. Libraries, comments and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

_INSTALLED = {"site-packages", "dist-packages"}


def source_hash(module: str) -> str:
    """A hash of the code of `module`, which is imported, and of what it imports beside it; stable over processes.

    Empty for a module that has no source file.
    """
    where = getattr(sys.modules[module], "__file__", None)
    if where is None or not where.endswith(".py"):
        return ""
    depth = module.count(".") + (Path(where).name == "__init__.py")
    root = Path(where).resolve().parents[depth]
    alone = module.partition(".")[0] if _INSTALLED & set(root.parts) else None
    found: dict[str, str] = {}
    waiting = [*_with_packages(module)]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in found or top == "rlheals_ray" or (alone and top != alone):
            continue  # our own code has version numbers: see _CODE_VERSION and grid.units.CODE
        if (file := _file_of(root, name)) is None:
            continue
        tree = ast.parse(file.read_bytes())
        found[name] = hashlib.blake2b(ast.dump(tree).encode(), digest_size=16).hexdigest()
        waiting += _imports(tree, name if file.name == "__init__.py" else name.rpartition(".")[0])
    return hashlib.blake2b(repr(sorted(found.items())).encode(), digest_size=16).hexdigest()


def _file_of(root: Path, module: str) -> Path | None:
    """The file of a module below `root`, if it has one there; nothing is imported to find it."""
    path = root.joinpath(*module.split("."))
    return next((f for f in (path.with_name(f"{path.name}.py"), path / "__init__.py") if f.is_file()), None)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that may be modules, among those that the code of a module in `package` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if node.level and package else []
            base = [*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])]
            for alias in node.names:  # each may be a module, or a name in one
                yield from _with_packages(".".join([*base, alias.name]))


def _with_packages(name: str) -> Iterator[str]:
    """Importing a.b.c runs a and a.b as well."""
    parts = name.split(".")
    yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))
