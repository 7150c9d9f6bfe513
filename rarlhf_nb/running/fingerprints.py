"""What determines the outputs of a notebook, as a hash: when it changes, the notebook runs again."""

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

PACKAGE = Path(__file__).parents[1]


def fingerprint(notebook: Path, parameters: dict[str, Any], digests: list[str], past: str) -> str:
    """A hash of everything that determines the outputs of a notebook.

    digests: hashes of the data files. past: the fingerprint of the notebook before this one.
    """
    code = "\n".join(cell.source for cell in cells(notebook))
    parts = [past, code, json.dumps(parameters, sort_keys=True, default=str), *digests]
    parts += [path.read_text() for path in imported_modules(notebook)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def imported_modules(notebook: Path) -> list[Path]:
    """The files of this package that the notebook imports, directly or indirectly, sorted."""
    python = TransformerManager().transform_cell  # turns magics and shell lines into Python
    source = "\n".join(python(cell.source) for cell in cells(notebook) if cell.cell_type == "code")
    found: set[Path] = set()
    waiting = list(_imports(source))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imports(path.read_text()))
    return sorted(found)


def _imports(source: str) -> Iterator[Path]:
    """The files of `rarlhf_nb` that the imports of `source` execute, including each package's `__init__.py`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{_home(node.module, alias.name)}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            bases = [PACKAGE.joinpath(*rest[:depth]) for depth in range(len(rest) + 1)]
            candidates = [path for base in bases for path in (base.with_suffix(".py"), base / "__init__.py")]
            yield from (path for path in candidates if first == PACKAGE.name and path.is_file())


def _home(package: str, name: str) -> str:
    """The submodule from which `package` imports `name` lazily; otherwise `name` itself."""
    init = PACKAGE.parent.joinpath(*package.split("."), "__init__.py")
    if init.is_file():
        for node in ast.walk(ast.parse(init.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "submod_attrs":
                homes = ast.literal_eval(node.value)
                return next((module for module, names in homes.items() if name in names), name)
    return name


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cells(notebook: Path) -> list[nbformat.NotebookNode]:
    """The cells of a notebook."""
    return nbformat.read(notebook, as_version=4).cells
