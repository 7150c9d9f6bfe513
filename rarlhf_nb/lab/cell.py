"""One cell of a sweep in a process of its own: `python -m rarlhf_nb.lab.cell SWEEP CELL`.

A cell is an ordinary run: `rarlhf run --run SWEEP/CELL` with the settings of its manifest does the same. The process
ends with whoever started it, which holds the other end of its standard input, so that no cell goes on unseen.
"""

import sys
from datetime import datetime

from rarlhf_nb.errors import UserError
from rarlhf_nb.files import sealed
from rarlhf_nb.lab.grid import Cell
from rarlhf_nb.lab.notebooks import NotebookFailed, notebook_files, run_notebooks
from rarlhf_nb.lab.parent import end_with_parent
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.sweep import CELL_NOTEBOOKS, FAILURE, Sweep

WAIT = 60.0  # seconds for a run folder that somebody else still holds, such as a process that is about to die


def run_cell(sweep: Sweep, cell: Cell) -> None:
    """Run the notebooks of a cell and write its report; what is finished is kept.

    Raises the errors of `run_notebooks`, after noting the failure in the cell's folder.
    """
    profile = sweep.grid.settings(cell)
    name = f"{sweep.folder.name}/{cell.name}"
    notebooks = [path for path in notebook_files() if path.stem in CELL_NOTEBOOKS]
    run = sweep.cell_run(cell)
    run.path(FAILURE).unlink(missing_ok=True)
    parameters = {"profile": sweep.grid.profile, "run": name, "seed": cell.seed, "overrides": cell.overrides}
    try:
        Run.open(name, profile.model_dump(mode="json"), cell.seed, sweep.folder.parent)
        run_notebooks(run, notebooks, parameters, wait=WAIT)
        _write_report(name)
    except Exception as error:
        failure = {
            "notebook": getattr(error, "notebook", None),
            "cell": getattr(error, "cell", None),
            "error": str(error),
            "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        run.write(FAILURE, sealed(failure))
        raise


def _write_report(name: str) -> None:
    from rarlhf_nb.lab.experiment import Experiment  # heavy, and imported already where this is called

    Experiment.reopen(name).report()


def main() -> None:
    """The process: status 0 if the cell is finished, 2 for bad input, 1 for any other failure."""
    end_with_parent()
    name, cell_name = sys.argv[1:]
    sweep = Sweep.reopen(name)
    try:
        run_cell(sweep, next(cell for cell in sweep.grid.cells() if cell.name == cell_name))
    except UserError as error:
        sys.exit(_report(error, 2))
    except NotebookFailed as error:
        sys.exit(_report(error, 1))


def _report(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
