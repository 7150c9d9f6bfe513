"""The command line: `rarlhf run`, `sweep`, `status`, `report`, `verify`, `export`, `explore`, `pocket`, `profiles`."""

# Heavy modules such as torch are imported by the commands that need them, so that `rarlhf --help` is quick.
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from typer.core import TyperGroup

from rarlhf_nb.data.pocket import MODELS, WORLDS
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import KEEP
from rarlhf_nb.lab.messages import storage_trouble

if TYPE_CHECKING:
    from rarlhf_nb.lab.experiment import Experiment


class Commands(TyperGroup):
    """The commands, all of which report a user's error in one line."""

    def invoke(self, context: typer.Context) -> Any:
        """Run a command; bad input and trouble with the disk end it with status 2, and Ctrl-C with 130."""
        try:
            return super().invoke(context)
        except UserError as error:
            message, status = f"error: {error}", 2
        except OSError as error:
            trouble, status = storage_trouble(error), 2
            if trouble is None:
                raise
            message = f"error: {trouble}; what is finished is kept, and the same command goes on from there"
        except KeyboardInterrupt:
            message, status = "interrupted: the same command goes on from here", 130
        typer.echo(message, err=True)
        raise typer.Exit(status)


app = typer.Typer(cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


pocket = typer.Typer(no_args_is_help=True, help="The models of the pocket worlds.")
app.add_typer(pocket, name="pocket")


@app.callback()
def main() -> None:
    """Risk-averse fine-tuning of language models (RA-RLHF)."""


@app.command()
def profiles() -> None:
    """List the profiles."""
    from rarlhf_nb.lab.profiles import profile_files

    for name, file in profile_files().items():
        # not load_profile: a profile may need files that are not there yet
        typer.echo(f"{name:16} {yaml.safe_load(file.read_text())['description']}")


@pocket.command()
def build(
    folder: Annotated[Path, typer.Argument(help="Where to; by default into the package.")] = MODELS,
) -> None:
    """Train the models of the pocket worlds again, in a minute each."""
    from rarlhf_nb.data.pocket.build import build_models

    for name in WORLDS:
        build_models(name, folder / name)
        typer.echo(f"{name}: {folder / name}")


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="Name of the profile; `rarlhf profiles` lists them.")] = "pocket",
    run: Annotated[str | None, typer.Option(help="Name of the run folder; by default the profile's name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of SFT, training and evaluation.")] = 1,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="KEY VALUE", help="A setting of the profile: -p risk.alpha 0.2")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the work; short for -p compute.processes N.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that do stages side by side; by default as many as fit.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Run every notebook again, even if nothing has changed.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep what is finished although the code has changed.")] = False,
) -> None:
    """Execute the notebooks in order into papermill_runs/RUN and print the report."""
    from rich.console import Console

    from rarlhf_nb.lab.ahead import affordable_workers
    from rarlhf_nb.lab.notebooks import NotebookFailed, notebook_files, run_notebooks
    from rarlhf_nb.lab.profiles import load_profile, read_settings
    from rarlhf_nb.lab.runs import Run
    from rarlhf_nb.lab.status import run_display

    if keep:
        os.environ[KEEP] = "1"  # which reaches the notebooks
    overrides = read_settings(parameter or [])
    if processes is not None:
        overrides["compute.processes"] = processes
    settings = load_profile(profile, overrides)
    opened = Run.open(run or settings.name, settings.model_dump(mode="json"), seed)
    most = affordable_workers(settings)
    count = min(workers or most, most)
    if count < (workers or 1):
        typer.echo(f"--workers {workers}: the cores and the free memory of this machine allow {most}")
    if count > 1 and "threads" not in opened.manifest:
        opened.note(threads=settings.compute.threads)
    typer.echo(f"profile {settings.name}, run {opened.name}, seed {seed}, processes: {count}")
    started = time.perf_counter()
    parameters = {"profile": profile, "run": opened.name, "seed": seed, "overrides": overrides}
    try:
        with run_display(Console(), opened, [path.stem for path in notebook_files()]):
            run_notebooks(opened, notebook_files(), parameters, force, echo=typer.echo, workers=count)
    except NotebookFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    if opened.path("summary.md").exists():
        typer.echo(opened.read("summary.md"))
    seconds = time.perf_counter() - started
    typer.echo(f"{seconds:.0f} s in all; report.md, notebooks, policies and tables are in {opened.folder}")


@app.command()
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
        int | None, typer.Option(min=1, help="Runs at once on this machine; by default as many as the cores allow.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler whose workers run it.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run a grid of more than 200 runs.")] = False,
) -> None:
    """Run every combination of α, seed and the values of -p, and report what the seeds say.

    Each combination is a run NAME/RUN; work that they share is done once. The same command continues an interrupted
    sweep, and with further values it runs only what is new.
    """
    if workers is not None and scheduler is not None:
        raise UserError(f"--workers = {workers} and --scheduler = {scheduler!r}: give one of them.")
    from rarlhf_nb.lab.sweep import Sweep, read_grid

    grid = read_grid(profile, alpha, seed, parameter or [], yes)  # what is wrong with it is said at once
    from rich.console import Console

    from rarlhf_nb.lab.run_sweep import local_client, remote_client, run_sweep
    from rarlhf_nb.lab.status import shared_work, sweep_display

    opened = Sweep.open(name, grid)
    connection = remote_client(scheduler, opened.folder) if scheduler else local_client(grid, workers)
    with connection as client, sweep_display(Console()) as show:
        report = run_sweep(opened, client, show, echo=typer.echo)
    typer.echo(f"{report.summary()}\n{shared_work(opened)}\nsweep_report.md and all runs are in {opened.folder}")


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Name of a run or a sweep; by default all of them.")] = None,
) -> None:
    """Show how far runs and sweeps have got, from their files alone, even while they run elsewhere."""
    from rarlhf_nb.lab.notebooks import notebook_files
    from rarlhf_nb.lab.runs import default_root
    from rarlhf_nb.lab.status import status_of, status_of_all

    notebooks = [path.stem for path in notebook_files()]
    lines = status_of_all(default_root(), notebooks) if name is None else status_of(name, default_root(), notebooks)
    typer.echo("\n".join(lines))


@app.command()
def report(run: Annotated[str, typer.Argument(help="Name of a run folder in papermill_runs/.")]) -> None:
    """Write the tables and figures of RUN into one HTML file that opens offline."""
    from rarlhf_nb.lab.experiment import Experiment
    from rarlhf_nb.lab.report_page import build_page

    experiment = Experiment.reopen(run)
    title = f"{run} ({experiment.profile.name}, seed {experiment.seed})"
    found = experiment.report()  # writes the report that the scores are read from
    page = build_page(title, experiment.profile, experiment.tables(), found, experiment.scores(["ppo.kl_coef"]))
    typer.echo(f"written: {experiment.output.write('report.html', page)}")


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="Name of a run folder in papermill_runs/.")],
    iterations: Annotated[int | None, typer.Option(min=1, help="Only the first iterations of each training.")] = None,
) -> None:
    """Repeat RUN from its manifest, and say what agrees to the last digit and what does not."""
    from rarlhf_nb.lab.verify import verify

    found = verify(reopen_run(run), iterations, say=lambda stage: typer.echo(f"repeating: {stage}"))
    for finding in found:
        typer.echo(f"{finding.what}: {'agrees' if finding.agrees else finding.difference}")
    different = [finding for finding in found if finding.file and not finding.agrees]
    typer.echo(f"{sum(finding.file for finding in found)} files compared, {len(different)} differ")
    if different:
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Name of a run folder in papermill_runs/.")],
    method: Annotated[str, typer.Argument(help="The method whose policy it is, such as ra_rlhf_ru or ra_rlhf@0.2.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write; nothing is overwritten.")],
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload it to this repository; a new one will be private.")
    ] = None,
) -> None:
    """Write the policy of METHOD in RUN with a model card into FOLDER, ready for the hub."""
    from rarlhf_nb.lab.export import check_push, export_policy, push_folder

    experiment = reopen_run(run)
    if push is not None:
        check_push(push)
    written = export_policy(experiment, method, folder, push)
    typer.echo(f"written: {written}")
    if push is not None:
        typer.echo(f"pushed: {push_folder(written, push)}")


@app.command()
def explore(
    run: Annotated[str, typer.Argument(help="Name of a run folder in papermill_runs/.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 8866,
) -> None:
    """Serve the explorer of RUN, read-only, to a browser on this machine; Ctrl-C ends it."""
    from rarlhf_nb.lab.explorer.page import serve

    serve(reopen_run(run).run, port, say=typer.echo)


def reopen_run(name: str) -> "Experiment":
    """The experiment of a run. Raises `UserError` for a sweep, which holds several runs, and those of `reopen`."""
    from rarlhf_nb.lab.experiment import Experiment

    experiment = Experiment.reopen(name)
    if experiment.output != experiment.run:
        raise UserError(
            f"run = {name!r} is a sweep: name one of its runs, such as {experiment.run.name}. `rarlhf report {name}` "
            f"and notebook 06 with run = {name!r} show the whole sweep."
        )
    return experiment


def join_pairs(words: list[str]) -> list[str]:
    """Turn papermill's `-p KEY VALUE` into `-p KEY=VALUE`, the single word that a repeated typer option takes."""
    joined: list[str] = []
    waiting = iter(words)
    for word in waiting:
        joined.append(word)
        if word == "-p":
            key, value = next(waiting, ""), None
            if "=" not in key:
                value = next(waiting, None)
            joined.append(key if value is None else f"{key}={value}")
    return joined


def entry() -> None:
    """The `rarlhf` command."""
    app(join_pairs(sys.argv[1:]))


if __name__ == "__main__":
    entry()
