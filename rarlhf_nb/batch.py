"""A run, headless: the notebooks in order by papermill, those again whose inputs changed."""

import ast
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from rarlhf_nb.errors import UserError
from rarlhf_nb.runs import Run

PACKAGE = Path(__file__).parent


class IPCKernelManager(AsyncKernelManager):
    """Kernels that talk over sockets of the file system: no port to race for, no warning about plain TCP."""

    transport = "ipc"


def run_notebooks(
    run: Run,
    notebooks: list[Path],
    parameters: dict[str, Any],
    inputs: list[Path],
    force: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Execute `notebooks` in order into the run folder.

    parameters: what each notebook's parameters cell is set to. inputs: the data files that the run reads. A notebook
    is left out where nothing that determines it changed since it last succeeded: its code, the library modules it
    imports, the parameters, the inputs, and the notebooks before it; `force` executes all. A failed one is kept as
    <name>.failed.ipynb, and what an earlier execution left stays.

    Raises `UserError` for a notebook without a `parameters` cell or without one of the parameters, and hands on a
    `UserError` that a notebook raised; any other failure comes as papermill's `PapermillExecutionError`.
    """
    check_parameters(notebooks, parameters)
    past = ""
    for notebook in notebooks:
        past = fingerprint(notebook, parameters, inputs, past)
        entry = run.manifest["notebooks"].get(notebook.stem, {})
        if not force and entry.get("state") == "done" and entry.get("fingerprint") == past:
            say(f"{notebook.stem}: unchanged, kept ({entry['seconds']:.0f} s when it ran)")
            continue
        say(f"{notebook.stem}: running")
        seconds = _execute(run, notebook, parameters, past)
        say(f"{notebook.stem}: done in {seconds:.0f} s")


def _execute(run: Run, notebook: Path, parameters: dict[str, Any], past: str) -> float:
    started = time.perf_counter()
    working = run.path(f".{notebook.stem}.running.ipynb")
    os.environ.setdefault("TQDM_DISABLE", "1")  # a progress bar in an executed notebook reads "0%" for ever
    try:
        papermill.execute_notebook(
            notebook,
            working,
            parameters,
            kernel_name="python3",
            kernel_manager_class=IPCKernelManager,
            start_timeout=120,
            store_widget_state=False,  # plotly's widget would add 5 MB a figure
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        os.replace(working, run.path(f"{notebook.stem}.failed.ipynb"))
        run.note_notebook(notebook.stem, state="failed", seconds=time.perf_counter() - started, fingerprint=past)
        if error.ename == "UserError":
            raise UserError(error.evalue) from None
        raise
    finally:
        if working.exists() and working.stat().st_size == 0:
            working.unlink()
    os.replace(working, run.path(notebook.name))
    run.path(f"{notebook.stem}.failed.ipynb").unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    run.note_notebook(notebook.stem, state="done", seconds=round(seconds, 1), fingerprint=past)
    return seconds


def check_parameters(notebooks: list[Path], parameters: dict[str, Any]) -> None:
    """Papermill only logs a missing parameters cell and an unknown parameter; here both are errors."""
    for notebook in notebooks:
        cells = [c for c in _cells(notebook) if "parameters" in c.metadata.get("tags", [])]
        if len(cells) != 1:
            raise UserError(f"{notebook.name} has {len(cells)} cells tagged `parameters`; it needs exactly one.")
        assigned = {node.id for node in ast.walk(ast.parse(cells[0].source)) if isinstance(node, ast.Name)}
        unknown = sorted(set(parameters) - assigned)
        if unknown:
            raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}; add it to its parameters cell.")


def fingerprint(notebook: Path, parameters: dict[str, Any], inputs: list[Path], past: str) -> str:
    """A name for all that determines what the notebook does; `past` is that of the notebook before it."""
    code = "\n".join(cell.source for cell in _cells(notebook))
    parts = [past, code, json.dumps(parameters, sort_keys=True, default=str)]
    parts += [path.read_text() for path in imported_modules(notebook)]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def imported_modules(notebook: Path) -> list[Path]:
    """The files of this package that the notebook imports, directly or through others, sorted."""
    source = "\n".join(cell.source for cell in _cells(notebook) if cell.cell_type == "code")
    found: set[Path] = set()
    waiting = list(_imports(source))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imports(path.read_text()))
    return sorted(found)


def _imports(source: str) -> Iterator[Path]:
    """Files of `rarlhf_nb` that an import statement of `source` names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            base = PACKAGE.joinpath(*rest)
            candidates = (base.with_suffix(".py"), base / "__init__.py")
            yield from (path for path in candidates if first == "rarlhf_nb" and path.is_file())


def _cells(notebook: Path) -> list[nbformat.NotebookNode]:
    return nbformat.read(notebook, as_version=4).cells
