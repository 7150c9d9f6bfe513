"""The command line: `rarlhf run` and `rarlhf profiles`."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from rarlhf_nb.errors import UserError
from rarlhf_nb.profiles import Profile, load_profile, profile_files
from rarlhf_nb.runs import Run, repository

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Risk-averse fine-tuning of language models (RA-RLHF)."""


@app.command()
def profiles() -> None:
    """List the profiles."""
    for name in profile_files():
        typer.echo(f"{name:16} {load_description(name)}")


def load_description(name: str) -> str:
    """The profile's own line about itself; it may need files that are not there, so it is not loaded."""
    return yaml.safe_load(profile_files()[name].read_text())["description"]


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="Name of the profile; `rarlhf profiles` lists them.")] = "pocket",
    run: Annotated[str | None, typer.Option(help="Name of the run folder; the profile's name unless given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of SFT, training and evaluation.")] = 1,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="KEY VALUE", help="A setting of the profile: -p risk.alpha 0.2")
    ] = None,
    force: Annotated[bool, typer.Option(help="Run every notebook again, changed or not.")] = False,
) -> None:
    """Execute the notebooks in order into papermill_runs/RUN and print the report."""
    try:
        execute(profile, run, seed, parse_parameters(parameter or []), force)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def execute(profile: str, run_name: str | None, seed: int, overrides: dict[str, Any], force: bool) -> None:
    """`rarlhf run`, with its arguments parsed."""
    settings = load_profile(profile, overrides)
    root = repository()
    run = Run.open(run_name or settings.name, settings.model_dump(mode="json"), seed, root / "papermill_runs")
    typer.echo(f"profile {settings.name}, run {run.folder.name}, seed {seed}")
    from papermill.exceptions import PapermillExecutionError  # heavy: an error above needs none of it

    from rarlhf_nb.batch import run_notebooks

    started = time.perf_counter()
    notebooks = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    parameters = {"profile": profile, "run": run.folder.name, "seed": seed, "overrides": overrides}
    try:
        run_notebooks(run, notebooks, parameters, _inputs(settings), force, say=lambda line: typer.echo(line))
    except PapermillExecutionError as error:
        typer.echo(f"error: cell {error.exec_count} failed with {error.ename}: {error.evalue}", err=True)
        typer.echo(f"The notebook as it failed lies in {run.folder}.", err=True)
        raise typer.Exit(1) from None
    typer.echo(run.path("report.md").read_text())
    typer.echo(f"{time.perf_counter() - started:.0f} s in all; notebooks, policies and tables lie in {run.folder}")


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """["risk.alpha=0.2"] -> {"risk.alpha": 0.2}; values are read as YAML."""
    split = [pair.partition("=") for pair in pairs]
    missing = [key for key, equals, _ in split if not equals]
    if missing:
        raise UserError(f"-p {missing[0]}: a value is missing; write -p KEY VALUE.")
    return {key: yaml.safe_load(value) for key, _, value in split}


def join_pairs(words: list[str]) -> list[str]:
    """`-p KEY VALUE`, as papermill has it, as the one word that typer's repeated options take: `-p KEY=VALUE`."""
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


def _inputs(settings: Profile) -> list[Path]:
    return [Path(path) for path in (settings.task.train_file, settings.task.test_file) if path is not None]


def entry() -> None:
    """The `rarlhf` command."""
    app(join_pairs(sys.argv[1:]))


if __name__ == "__main__":
    entry()
