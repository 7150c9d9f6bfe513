"""A headless run: papermill executes the notebooks in order, skipping those whose inputs have not changed."""

import ast
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import strip_color

from rarlhf_nb.errors import UserError, storage_trouble
from rarlhf_nb.files import checksum, identity
from rarlhf_nb.interrupts import InterruptLater
from rarlhf_nb.lab.fingerprints import cells, fingerprint, imported_modules
from rarlhf_nb.lab.kernels import interrupt_kernel, kernel_folder, kernel_manager, share_imports
from rarlhf_nb.lab.lock import held
from rarlhf_nb.lab.records import damaged_files, read_records
from rarlhf_nb.lab.runs import Run

USER_ERRORS = ("UserError", "TrainingStopped")  # what a notebook raises and the user can mend


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; the message says where and why, and names the copy that shows the error.

    notebook: its name. cell: the execution number of the cell that failed; None if the kernel died.
    """

    def __init__(self, message: str, notebook: str, cell: int | None) -> None:
        super().__init__(message)
        self.notebook, self.cell = notebook, cell


def run_notebooks(
    run: Run,
    notebooks: list[Path],
    parameters: dict[str, Any],
    sources: list[str],
    force: bool = False,
    wait: float = 0.0,
    say: Callable[[str], None] = print,
) -> None:
    """Execute `notebooks` in order into the run folder.

    A notebook is skipped where nothing that determines its outputs has changed since it last succeeded (its code, the
    library modules that it imports, the parameters, the sources, and the notebooks before it) and all that it left is
    whole. One that runs again repeats only the stages that have changed themselves. `force` repeats everything.
    parameters: the values for every notebook's parameters cell. sources: the data and models that the run reads: files,
    folders or hub ids. A notebook that fails is kept as <name>.failed.ipynb beside the result of an earlier execution.
    Ctrl-C reaches the notebook, so that a training under way saves a checkpoint first; a second one ends it at once.
    wait: seconds to wait for a run that another process works on.

    Raises `UserError` for a notebook without a `parameters` cell or without one of the parameters, and passes on a
    `UserError` that a notebook raised; also where another process works on the run. Any other failure becomes
    `NotebookFailed`.
    """
    check_parameters(notebooks, parameters)
    share_imports(sorted({module for notebook in notebooks for module in imported_modules(notebook)}))
    past = ""
    digests = [json.dumps(identity(source)) for source in sources]
    with held(run, wait):
        if force:
            run.forget()
        for notebook in notebooks:
            past = fingerprint(notebook, parameters, digests, past)
            entry = run.manifest["notebooks"].get(notebook.stem, {})
            unchanged = entry.get("state") == "done" and entry.get("fingerprint") == past
            damaged = _damaged(run, notebook, entry) if unchanged else None
            if unchanged and not damaged and not force:
                say(f"{notebook.stem}: unchanged, kept ({entry['seconds']:.0f} s when it ran)")
                continue
            if damaged:
                say(f"{notebook.stem}: {damaged} is damaged or missing, and is made again")
            say(f"{notebook.stem}: running")
            seconds = _execute(run, notebook, parameters, past)
            say(f"{notebook.stem}: done in {seconds:.0f} s")


def _damaged(run: Run, notebook: Path, entry: dict[str, Any]) -> str | None:
    """The first file that a finished notebook left and that is no longer as it was."""
    executed = run.path(notebook.name)
    if not executed.is_file() or checksum(executed) != entry.get("checksum"):
        return notebook.name
    records = [record for record in read_records(run.folder) if record.notebook == notebook.stem]
    return next((name for record in records for name in damaged_files(run.folder, record)), None)


def _execute(run: Run, notebook: Path, parameters: dict[str, Any], past: str) -> float:
    started = time.perf_counter()

    def note(state: str, **more: str) -> float:
        seconds = round(time.perf_counter() - started, 1)
        run.note_notebook(notebook.stem, state=state, seconds=seconds, fingerprint=past, **more)
        return seconds

    working = run.path(f".{notebook.stem}.running.ipynb")
    failed = run.path(f"{notebook.stem}.failed.ipynb")
    interrupt = InterruptLater()
    note("running")  # stays if the runner is killed, so that the notebook runs again
    try:
        with kernel_folder(run) as folder, InterruptLater(lambda: interrupt_kernel(folder)) as interrupt:
            _papermill(notebook, working, parameters, folder)
    except BaseException as error:
        trouble = storage_trouble(getattr(error, "evalue", error))
        interrupted = interrupt.asked or not isinstance(error, Exception)
        with suppress(OSError if trouble else ()):
            note("interrupted" if interrupted else "failed")
        if working.exists():
            os.replace(working, failed)
        if trouble:
            raise UserError(
                f"{trouble} under {run.folder}; what is finished is kept, and the same command goes on from there."
            ) from None
        if getattr(error, "ename", None) in USER_ERRORS:
            raise UserError(error.evalue) from None
        if interrupted:
            raise KeyboardInterrupt from None
        account = _account(error, notebook, failed)
        raise NotebookFailed(account, notebook.stem, getattr(error, "exec_count", None)) from error
    _forget_paths(working)
    os.replace(working, run.path(notebook.name))
    failed.unlink(missing_ok=True)
    return note("done", checksum=checksum(run.path(notebook.name)))


def _papermill(notebook: Path, target: Path, parameters: dict[str, Any], folder: str) -> None:
    papermill.execute_notebook(
        notebook,
        target,
        parameters,
        kernel_name="python3",
        language="python",
        kernel_manager_class=kernel_manager(folder),
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
        tagged = [cell for cell in cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
        if len(tagged) != 1:
            raise UserError(f"{notebook.name} has {len(tagged)} cells tagged `parameters`; it needs exactly one.")
        names = [node for node in ast.walk(ast.parse(tagged[0].source)) if isinstance(node, ast.Name)]
        assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        unknown = sorted(set(parameters) - assigned)
        if unknown:
            raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}; add it to its parameters cell.")
