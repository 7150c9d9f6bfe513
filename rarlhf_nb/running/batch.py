"""A headless run: papermill executes the notebooks in order, skipping those whose inputs have not changed."""

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
from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import strip_color

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.runs import Run

PACKAGE = Path(__file__).parents[1]
KERNEL_ENVIRONMENT = {
    "TQDM_DISABLE": "1",  # in an executed notebook a progress bar stays at "0%"
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RARLHF_STATIC": "1",  # pictures and tables instead of widgets, which nobody is there to move
}


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; the message says where and why, and names the copy that shows the error."""


class IPCKernelManager(AsyncKernelManager):
    """Kernels that talk over file-system sockets: no race for a port, no warning about plain TCP.

    They get `KERNEL_ENVIRONMENT`, except for variables that the user has set.
    """

    transport = "ipc"

    async def _async_pre_start_kernel(self, **launch: Any) -> Any:
        environment = KERNEL_ENVIRONMENT | dict(launch.pop("env", os.environ))
        return await super()._async_pre_start_kernel(env=environment, **launch)


def run_notebooks(
    run: Run,
    notebooks: list[Path],
    parameters: dict[str, Any],
    inputs: list[Path],
    force: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Execute `notebooks` in order into the run folder.

    A notebook is skipped where nothing that determines its outputs has changed since it last succeeded: its code, the
    library modules that it imports, the parameters, the inputs, and the notebooks before it. `force` executes all.
    parameters: the values for every notebook's parameters cell. inputs: the data files that the run reads. A notebook
    that fails is kept as <name>.failed.ipynb beside the result of an earlier execution.

    Raises `UserError` for a notebook without a `parameters` cell or without one of the parameters, and passes on a
    `UserError` that a notebook raised. Any other failure becomes `NotebookFailed`.
    """
    check_parameters(notebooks, parameters)
    past = ""
    digests = [_digest(path) for path in inputs]
    for notebook in notebooks:
        past = fingerprint(notebook, parameters, digests, past)
        entry = run.manifest["notebooks"].get(notebook.stem, {})
        if not force and entry.get("state") == "done" and entry.get("fingerprint") == past:
            say(f"{notebook.stem}: unchanged, kept ({entry['seconds']:.0f} s when it ran)")
            continue
        say(f"{notebook.stem}: running")
        seconds = _execute(run, notebook, parameters, past)
        say(f"{notebook.stem}: done in {seconds:.0f} s")


def _execute(run: Run, notebook: Path, parameters: dict[str, Any], past: str) -> float:
    started = time.perf_counter()

    def note(state: str) -> float:
        seconds = round(time.perf_counter() - started, 1)
        run.note_notebook(notebook.stem, state=state, seconds=seconds, fingerprint=past)
        return seconds

    working = run.path(f".{notebook.stem}.running.ipynb")
    failed = run.path(f"{notebook.stem}.failed.ipynb")
    note("running")  # stays if the runner is killed, so that the notebook runs again
    try:
        _papermill(notebook, working, parameters)
    except BaseException as error:
        note("failed")
        if working.exists():
            os.replace(working, failed)
        if getattr(error, "ename", None) == "UserError":
            raise UserError(error.evalue) from None
        if isinstance(error, Exception):
            raise NotebookFailed(_account(error, notebook, failed)) from error
        raise  # interrupted
    _forget_paths(working)
    os.replace(working, run.path(notebook.name))
    failed.unlink(missing_ok=True)
    return note("done")


def _papermill(notebook: Path, target: Path, parameters: dict[str, Any]) -> None:
    papermill.execute_notebook(
        notebook,
        target,
        parameters,
        kernel_name="python3",
        language="python",
        kernel_manager_class=IPCKernelManager,
        start_timeout=120,
        store_widget_state=False,  # plotly's widget state would add 5 MB per figure
        progress_bar=False,
    )


def _forget_paths(executed: Path) -> None:
    """Drop papermill's record of the notebook's paths, since executed notebooks are shared."""
    notebook = nbformat.read(executed, as_version=4)
    for key in ("input_path", "output_path"):
        notebook.metadata["papermill"].pop(key, None)
    nbformat.write(notebook, executed)


def _account(error: Exception, notebook: Path, failed: Path) -> str:
    """The error, the last lines of the notebook's traceback if there is one, and where to look."""
    lines = strip_color("\n".join(getattr(error, "traceback", []))).splitlines()
    what = f"{error.ename}: {error.evalue}" if lines else f"{type(error).__name__}: {error}"
    where = [f"The failed notebook: {failed}"] if failed.exists() else []
    return "\n".join([f"{notebook.stem} failed with {what}", *lines[-8:], *where])


def check_parameters(notebooks: list[Path], parameters: dict[str, Any]) -> None:
    """Raise `UserError` for a missing parameters cell and for an unknown parameter, which papermill only logs."""
    for notebook in notebooks:
        cells = [c for c in _cells(notebook) if "parameters" in c.metadata.get("tags", [])]
        if len(cells) != 1:
            raise UserError(f"{notebook.name} has {len(cells)} cells tagged `parameters`; it needs exactly one.")
        names = [node for node in ast.walk(ast.parse(cells[0].source)) if isinstance(node, ast.Name)]
        assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        unknown = sorted(set(parameters) - assigned)
        if unknown:
            raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}; add it to its parameters cell.")


def fingerprint(notebook: Path, parameters: dict[str, Any], digests: list[str], past: str) -> str:
    """A hash of everything that determines the outputs of a notebook.

    digests: hashes of the data files. past: the fingerprint of the notebook before this one.
    """
    code = "\n".join(cell.source for cell in _cells(notebook))
    parts = [past, code, json.dumps(parameters, sort_keys=True, default=str), *digests]
    parts += [path.read_text() for path in imported_modules(notebook)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def imported_modules(notebook: Path) -> list[Path]:
    """The files of this package that the notebook imports, directly or indirectly, sorted."""
    python = TransformerManager().transform_cell  # turns magics and shell lines into Python
    source = "\n".join(python(cell.source) for cell in _cells(notebook) if cell.cell_type == "code")
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


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cells(notebook: Path) -> list[nbformat.NotebookNode]:
    return nbformat.read(notebook, as_version=4).cells
