"""The commands `rarlhf sweep` and `rarlhf status`."""

import os
from math import prod
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.messages import reported_errors

if TYPE_CHECKING:  # heavy modules are imported by the commands that need them
    from rarlhf_nb.lab.status import SweepProgress
    from rarlhf_nb.lab.sweep import Sweep
    from rarlhf_nb.lab.workers import Workers

MANY = 200  # cells; a larger grid is more often a slip than a wish


def sweep(
    name: Annotated[str, typer.Argument(help="Name of the sweep's folder in papermill_runs/.")],
    profile: Annotated[str, typer.Option(help="Name of the profile; `rarlhf profiles` lists them.")] = "pocket",
    alpha: Annotated[str | None, typer.Option(help="Tail shares, such as 1,0.4,0.2; by default the profile's.")] = None,
    seed: Annotated[str, typer.Option(help="Seeds, such as 1-5 or 1,4.")] = "1-3",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="KEY VALUES", help="A setting with one value or several: -p ppo.kl_coef 0.1,0.2"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; by default as many as the cores allow.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler whose workers run it.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help=f"Run a grid of more than {MANY} cells.")] = False,
) -> None:
    """Run every combination of α, seed and the values of -p, and report what the seeds say.

    Each combination is a run NAME/CELL; work that they share is done once. The same command continues an interrupted
    sweep, and with further values it runs only what is new.
    """
    with reported_errors():
        if workers is not None and scheduler is not None:
            raise UserError(f"--workers = {workers} and --scheduler = {scheduler!r}: give one of them.")
        _sweep(name, profile, alpha, seed, parameter or [], workers, scheduler, yes)


def _sweep(
    name: str,
    profile: str,
    alpha: str | None,
    seed: str,
    pairs: list[str],
    workers: int | None,
    scheduler: str | None,
    yes: bool,
) -> None:
    from rarlhf_nb.lab.grid import Grid, read_alphas, read_seeds, read_values
    from rarlhf_nb.lab.profiles import load_profile
    from rarlhf_nb.lab.status import shared_work
    from rarlhf_nb.lab.sweep import Sweep
    from rarlhf_nb.lab.sweeping import run_sweep

    values = read_values(pairs)
    free = {key: several for key, several in values.items() if len(several) > 1}
    fixed = {key: several[0] for key, several in values.items() if len(several) == 1}
    settings = load_profile(profile, fixed)
    alphas = [settings.risk.alpha] if alpha is None else read_alphas(alpha)
    seeds = read_seeds(seed)
    _check_size(settings.name, len(alphas) * len(seeds) * prod(map(len, free.values())), yes)
    opened = Sweep.open(name, Grid(profile, alphas, seeds, free, fixed))
    with Display() as display:
        report = run_sweep(opened, _workers(opened, workers, scheduler), display.show, say=typer.echo)
    typer.echo(f"{report.summary()}\n{shared_work(opened)}\nsweep_report.md and all runs are in {opened.folder}")


def _check_size(profile: str, cells: int, yes: bool) -> None:
    """Raise `UserError` for a very large grid, unless the user has said yes."""
    from rarlhf_nb.lab.sweep import seconds_of_a_run

    if cells > MANY and not yes:
        seconds = seconds_of_a_run(profile)
        known = f"some {cells * seconds / 3600:.0f} hours of one worker" if seconds else "an unknown time"
        raise UserError(f"the grid has {cells} cells, which take {known}: make it smaller, or say --yes.")


def _workers(opened: "Sweep", workers: int | None, scheduler: str | None) -> "Workers":
    from rarlhf_nb.lab.workers import DaskWorkers, LocalWorkers

    if scheduler is not None:
        return DaskWorkers(opened.folder, scheduler)
    threads = opened.grid.settings(opened.grid.cells()[0]).compute.threads or 1
    return LocalWorkers(opened.folder, workers or max(1, (os.cpu_count() or 1) // threads))


class Display:
    """The progress of a sweep: a table that stays in place in a terminal, and elsewhere a line for every change."""

    def __init__(self) -> None:
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.counts: dict[str, int] = {}

    def __enter__(self) -> "Display":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, progress: "SweepProgress") -> None:
        """Show the progress."""
        if self.live is not None:
            self.live.update(_table(progress), refresh=True)
        elif progress.counts() != self.counts:
            self.counts = progress.counts()
            typer.echo(progress.headline())


def _table(progress: "SweepProgress") -> Table:
    rows = progress.table()
    table = Table(caption=progress.headline(), box=None)
    for column in ("cell", *rows.columns):
        table.add_column(column, overflow="fold")
    for name, row in rows.iterrows():
        table.add_row(name, *map(escape, row))
    return table


def status(
    name: Annotated[str | None, typer.Argument(help="Name of a run or a sweep; by default all of them.")] = None,
) -> None:
    """Show how far runs and sweeps have got, from their files alone, even while they run elsewhere."""
    with reported_errors():
        for line in _status(name):
            typer.echo(line)


def _status(name: str | None) -> list[str]:
    from rarlhf_nb.lab.artifacts import SWEEP
    from rarlhf_nb.lab.notebooks import notebook_files
    from rarlhf_nb.lab.runs import MANIFEST, Run, check_name, default_root
    from rarlhf_nb.lab.status import run_progress, run_table, shared_work, sweep_progress
    from rarlhf_nb.lab.sweep import Sweep

    root = default_root()
    notebooks = [path.stem for path in notebook_files()]
    if name is None:
        lines = []
        for folder in sorted(path.parent for path in root.glob(f"*/{MANIFEST}")):
            try:
                if (folder / SWEEP).exists():
                    found = f"sweep, {sweep_progress(Sweep.reopen(folder.name)).headline()}"
                else:
                    progress = run_progress(Run(folder), notebooks)
                    found = ": ".join(part for part in (progress.state, progress.at) if part)
            except UserError as error:
                found = str(error)
            lines.append(f"{folder.name}: {found}")
        return lines or ["there are no runs yet"]
    check_name(name)
    if (root / name / SWEEP).exists():
        opened = Sweep.reopen(name)
        progress = sweep_progress(opened)
        return [progress.table().to_string(), progress.headline(), shared_work(opened)]
    if not (root / name / MANIFEST).exists():
        raise UserError(f"run = {name!r}: there is no such run or sweep; `rarlhf status` lists them.")
    return [run_table(Run(root / name), notebooks).to_string()]
