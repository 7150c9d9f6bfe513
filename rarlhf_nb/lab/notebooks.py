"""The notebooks of a run: where they are, and how papermill executes them one after another."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import strip_color
from traitlets.config import Config

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.ahead import SAVE_SECONDS, work_ahead
from rarlhf_nb.lab.artifacts import SHARED, run_lock
from rarlhf_nb.lab.messages import storage_trouble
from rarlhf_nb.lab.runs import NOTEBOOKS, Run, checkout

INSTALLED = Path(__file__).parent / "notebooks"  # of a package without a checkout
USER_ERRORS = ("UserError", "TrainingStopped")  # what a notebook raises and the user can mend
ENVIRONMENT = {
    "TQDM_DISABLE": "1",  # in an executed notebook a progress bar stays at "0%"
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RARLHF_STATIC": "1",  # pictures and tables instead of widgets, which nobody is there to move
}


class NotebookFailed(RuntimeError):
    """A notebook did not run to its end; the message says where and why, and names the copy that shows the error."""


def notebook_files(folder: Path | None = None) -> list[Path]:
    """The notebooks in their order: those of the checkout as seen from `folder`, or else those inside the package."""
    home = checkout(folder)
    return sorted((home / "notebooks" if home else INSTALLED).glob(NOTEBOOKS))


def run_notebooks(
    run: Run,
    notebooks: list[Path],
    parameters: dict[str, Any],
    force: bool = False,
    wait: float = 0.0,
    folder: Path | None = None,
    echo: Callable[[str], None] = print,
    workers: int = 1,
) -> None:
    """Execute `notebooks` in order into the run folder; a stage that is done already is kept, and so takes no time.

    parameters: the values for every notebook's parameters cell. force: do every stage again. wait: seconds to wait for
    a run that another process works on. folder: where the notebooks work, by default the current folder. echo: gets a
    line about every notebook. workers: processes that work on the run; all but one do stages ahead of the notebooks.

    A notebook that fails is kept as <name>.failed.ipynb beside the result of an earlier execution. Ctrl-C reaches the
    notebook, so that a training under way saves a checkpoint first; a second one ends it at once. The variables in
    `ENVIRONMENT` stay set in this process, except for those that the user has set.

    Raises `UserError` for a notebook without one of the parameters, if another process works on the run, and if a
    notebook raises one. Any other failure becomes `NotebookFailed`.
    """
    check_parameters(notebooks, parameters)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with run_lock(run.folder, wait):
        if force:
            run.forget()
        with work_ahead(run, notebooks, workers):
            for notebook in notebooks:
                echo(f"{notebook.stem}: running")
                seconds = _run_notebook(run, notebook, parameters, folder)
                echo(f"{notebook.stem}: done in {seconds:.0f} s")
        shutil.rmtree(run.path(SHARED), ignore_errors=True)


def check_parameters(notebooks: list[Path], parameters: dict[str, Any]) -> None:
    """Raise `UserError` for a notebook without a parameters cell or without one of `parameters`; papermill logs it."""
    for notebook in notebooks:
        known = papermill.inspect_notebook(notebook)
        if not known:
            raise UserError(f"{notebook.name} has no cell with parameters; tag one as `parameters`.")
        unknown = sorted(parameters.keys() - known.keys())
        if unknown:
            raise UserError(f"{notebook.name} has no parameter {', '.join(unknown)}; add it to its parameters cell.")


def _run_notebook(run: Run, notebook: Path, parameters: dict[str, Any], folder: Path | None) -> float:
    """Execute one notebook, note its state in the manifest, and return the seconds that it took."""
    started = time.perf_counter()
    unfinished = run.path(f".{notebook.stem}.running.ipynb")
    failed = run.path(f"{notebook.stem}.failed.ipynb")

    def note(state: str, **more: Any) -> float:
        seconds = round(time.perf_counter() - started, 1)
        run.note_notebook(notebook.stem, state=state, seconds=seconds, **more)
        return seconds

    note("running")  # which stays if this process is killed
    try:
        executed = _execute(notebook, unfinished, parameters, folder or Path.cwd())
    except BaseException as error:
        with suppress(OSError):  # on a full disk
            if unfinished.exists():
                os.replace(unfinished, failed)
        failure = _explained(error, notebook, run, failed)
        interrupted = isinstance(failure, KeyboardInterrupt)
        with suppress(OSError):
            reason = {} if interrupted else {"error": str(failure), "cell": getattr(error, "exec_count", None)}
            note("interrupted" if interrupted else "failed", **reason)
        raise failure from None
    run.write(notebook.name, nbformat.writes(executed) + "\n")
    unfinished.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    return note("done")


def _execute(notebook: Path, target: Path, parameters: dict[str, Any], folder: Path) -> nbformat.NotebookNode:
    """Run papermill; the executed notebook does not tell the paths of this machine, since such notebooks are shared."""
    with tempfile.TemporaryDirectory(prefix="rarlhf-") as sockets:
        kernel = {
            "transport": "ipc",  # runs side by side cannot take each other's port, and nobody else can listen
            "ip": f"{sockets}/socket",
            "connection_file": f"{sockets}/kernel.json",
            "shutdown_wait_time": 2 * SAVE_SECONDS,  # half of it passes before the kernel is terminated
        }
        executed = papermill.execute_notebook(
            notebook,
            target,
            parameters,
            kernel_name="python3",
            language="python",
            config=Config(AsyncKernelManager=kernel),
            resources={"metadata": {"path": str(folder)}},
            extra_arguments=["--IPKernelApp.kernel_class=rarlhf_nb.lab.kernel.RunnerKernel"],
            start_timeout=120,
            store_widget_state=False,  # plotly's widget state would add 5 MB per figure
            progress_bar=False,
        )
    for key in ("input_path", "output_path"):
        executed.metadata["papermill"].pop(key, None)
    return executed


def _explained(error: BaseException, notebook: Path, run: Run, failed: Path) -> BaseException:
    """The exception that tells the user what happened. failed: where the failed notebook is, if there is one."""
    trouble = storage_trouble(getattr(error, "evalue", error))
    if trouble:
        return UserError(
            f"{trouble} under {run.folder}; what is finished is kept, and the same command goes on from there."
        )
    name, message = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    if name in USER_ERRORS:
        return UserError(message)
    if name == "KeyboardInterrupt" or not isinstance(error, Exception):
        return KeyboardInterrupt()
    if isinstance(error, DeadKernelError):
        message = (
            "its kernel died, as when the system ends a process that takes too much memory; what is finished "
            "is kept, and the same command goes on from there"
        )
    lines = strip_color("\n".join(getattr(error, "traceback", []))).splitlines()
    place = [f"The failed notebook: {failed}"] if failed.exists() else []
    return NotebookFailed("\n".join([f"{notebook.stem} failed with {name}: {message}", *lines[-8:], *place]))
