"""The package's own code as part of a fingerprint: which modules something runs, and what they do.

Comments, docstrings and layout do not count, so that a reworded sentence trains nothing again.
"""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
# Names, files and settings: the settings count by their values, and the rest changes no result.
WITHOUT_RESULTS = {f"{name}.py" for name in ("errors", "interrupts", "checkpoint", "resumable", "files", "settings")}
WITHOUT_RESULTS |= {"sources.py", "provenance.py", "lab/methods.py", "lab/records.py", "lab/runs.py", "lab/shelf.py"}
WITHOUT_RESULTS |= {"lab/lock.py", "lab/profiles/__init__.py"}


def code_hash(modules: Iterable[str], *kinds: type) -> str:
    """A hash of what `modules` do, with every module of this package that they import, and of the classes `kinds`.

    modules: names without the package's, such as "trainer". Modules of `core` that change no result are left
    out.
    """
    files = [path for path in imported_files(f"import {PACKAGE.name}.{module}" for module in modules)]
    counted = [path for path in files if path.relative_to(PACKAGE).as_posix() not in WITHOUT_RESULTS]
    parts = [f"{path.relative_to(PACKAGE)}\n{code_of(path)}" for path in counted if path.name != "__init__.py"]
    parts += [bare_code(textwrap.dedent(inspect.getsource(kind))) for kind in kinds]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def imported_files(sources: Iterable[str]) -> list[Path]:
    """The files of this package that `sources`, pieces of Python code, import directly or indirectly, sorted."""
    found: set[Path] = set()
    waiting = [path for source in sources for path in _imports(source)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_file_imports(path, path.stat().st_mtime_ns))
    return sorted(found)


def code_of(path: Path) -> str:
    """`bare_code` of a file."""
    return _code_of(path, path.stat().st_mtime_ns)


def bare_code(source: str) -> str:
    """Python code without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return ast.unparse(tree)


@cache
def _code_of(path: Path, changed: int) -> str:
    return bare_code(path.read_text())


@cache
def _file_imports(path: Path, changed: int) -> tuple[Path, ...]:
    return tuple(_imports(path.read_text()))


def _imports(source: str) -> Iterator[Path]:
    """The files of this package that the imports of `source` execute, including each package's `__init__.py`."""
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
