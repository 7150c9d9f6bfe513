"""`rarlhf sweep`: all cells of a grid, then the notebooks and the report of the whole sweep."""

from collections.abc import Callable

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import run_lock
from rarlhf_nb.lab.evaluation.sweep_report import SweepReport, build_sweep_report
from rarlhf_nb.lab.notebooks import notebook_files, run_notebooks
from rarlhf_nb.lab.status import SweepProgress, sweep_progress
from rarlhf_nb.lab.sweep import SWEEP_NOTEBOOKS, Sweep
from rarlhf_nb.lab.sweep_experiment import finished_cells, sweep_scores
from rarlhf_nb.lab.workers import STOP, Workers


def run_sweep(
    sweep: Sweep,
    workers: Workers,
    tell: Callable[[SweepProgress], None],
    say: Callable[[str], None] = print,
) -> SweepReport:
    """Finish every cell of the sweep that is not finished, then run notebooks 05 and 06 on the sweep and report it.

    A cell that fails is tried once more, and then left behind. tell: gets the progress every second. Raises `UserError`
    where another process works on the sweep or no cell could be finished, and the errors of `run_notebooks`.
    """
    run = sweep.run
    with run_lock(run.folder):
        run.path(STOP).unlink(missing_ok=True)
        try:
            workers.run([cell.name for cell in sweep.grid.cells()], lambda: tell(sweep_progress(sweep, workers.count)))
        finally:
            run.path(STOP).unlink(missing_ok=True)
    if not finished_cells(sweep):
        raise UserError(
            f"no run of sweep {sweep.folder.name!r} could be finished: see `rarlhf status {sweep.folder.name}`."
        )
    report = write_sweep_report(sweep)
    parameters = {"profile": sweep.grid.profile, "run": sweep.folder.name, "seed": sweep.grid.seeds[0], "overrides": {}}
    notebooks = [path for path in notebook_files() if path.stem in SWEEP_NOTEBOOKS]
    run_notebooks(run, notebooks, parameters, echo=say)
    return report


def write_sweep_report(sweep: Sweep) -> SweepReport:
    """Write sweep_report.md and sweep_report.json: every method over seeds, and what the sweep found."""
    report, run = build_sweep_report(sweep_scores(sweep)), sweep.run
    run.write("sweep_report.md", report.to_markdown())
    run.write("sweep_report.json", report.to_json())
    return report
