"""How far a run or a sweep has got, read from its files alone, even while it runs elsewhere."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import SWEEP, lock_owner, read_records
from rarlhf_nb.lab.methods import CONDITIONED, CRITIC_FREE, MethodKey
from rarlhf_nb.lab.runs import MANIFEST, Run, check_name
from rarlhf_nb.lab.sweep import TRIAL_NOTEBOOKS, Sweep

QUIET = 120  # seconds without a written file, after which a run counts as silent


class Progress(NamedTuple):
    """How far a run or one of its notebooks is.

    state: waiting, running, silent (the run is held by a process but writes nothing), interrupted, failed or done. at:
    the notebook, and the training under way in it or the cell that failed. seconds: so far. error: why it failed.
    """

    state: str
    at: str = ""
    seconds: float = 0.0
    error: str = ""


def notebook_progress(run: Run, notebooks: list[str]) -> dict[str, Progress]:
    """The progress of each of these notebooks in a run; `at` lacks the notebook's name. Raises those of `manifest`."""
    entries, busy = run.manifest["notebooks"], lock_owner(run.folder) is not None
    found = {}
    for name in notebooks:
        entry = {"state": "waiting", "seconds": 0.0, "error": "", "cell": None} | entries.get(name, {})
        state, seconds = entry["state"], entry["seconds"]
        if state == "running" and busy:
            seconds = _since(run.path(MANIFEST).stat().st_mtime)
            state = "silent" if _since(_last_write(run)) > QUIET else "running"
        elif state == "running":
            state = "interrupted"
        at = _training(run) if state in ("running", "silent", "interrupted") else ""
        at = f", cell {entry['cell']}" if entry["cell"] else at
        found[name] = Progress(state, at, seconds, entry["error"])
    return found


def run_progress(run: Run, notebooks: list[str]) -> Progress:
    """The progress of a run that is done after these notebooks."""
    if not run.path(MANIFEST).exists():
        return Progress("waiting")
    try:
        parts = notebook_progress(run, notebooks)
    except UserError as error:
        return Progress("failed", error=str(error))
    seconds, busy = sum(part.seconds for part in parts.values()), lock_owner(run.folder) is not None
    name, first = next(((name, part) for name, part in parts.items() if part.state != "done"), ("", Progress("done")))
    if busy and first.state not in ("running", "silent"):
        return Progress("running", "between notebooks", seconds)
    if first.state == "waiting" and seconds:  # killed between two notebooks; in JupyterLab no notebook is noted
        return Progress("interrupted", name, seconds)
    return first._replace(at=name + first.at, seconds=seconds)


def table(progress: dict[str, Progress]) -> str:
    """One row for each run or notebook, by its name, and below them why some have failed."""
    rows = [(part.state, part.at.lstrip(":, "), _clock(part.seconds)) for part in progress.values()]
    errors = [f"{name}: {part.error.splitlines()[0]}" for name, part in progress.items() if part.error]
    return "\n".join([pd.DataFrame(rows, list(progress), ["state", "at", "time"]).to_string(), *errors])


class SweepProgress(NamedTuple):
    """How far a sweep is. trials: by name. seconds_left: estimated from finished runs; None before there are any."""

    trials: dict[str, Progress]
    seconds_left: float | None

    def headline(self) -> str:
        """One line: how many runs are in each state, and the time left."""
        return self.counts() + (f"; about {_clock(self.seconds_left)} left" if self.seconds_left else "")

    def counts(self) -> str:
        """How many runs are in each state, such as "3 done, 1 running"."""
        found = Counter(trial.state for trial in self.trials.values())
        return ", ".join(f"{count} {state}" for state, count in found.items())


def sweep_progress(sweep: Sweep, workers: int = 1) -> SweepProgress:
    """The progress of a sweep on so many workers; of one that runs elsewhere, on as many as run something now."""
    trials = {trial.name: run_progress(sweep.trial_run(trial), TRIAL_NOTEBOOKS) for trial in sweep.grid.trials()}
    finished = [trial.seconds for trial in trials.values() if trial.state == "done"]
    if not finished:
        return SweepProgress(trials, None)
    each = sum(finished) / len(finished)
    left = sum(max(0.0, each - trial.seconds) for trial in trials.values() if trial.state not in ("done", "failed"))
    running = sum(trial.state == "running" for trial in trials.values())
    return SweepProgress(trials, left / max(workers, running))


def shared_work(sweep: Sweep) -> str:
    """One line: the work of the runs, and how much of it they took from each other instead of doing it."""
    records = [record for trial in sweep.grid.trials() for record in read_records(sweep.trial_run(trial).folder)]
    taken = sum(record.seconds for record in records if record.taken_from)
    worked = sum(record.seconds for record in records if not record.taken_from)
    share = 100 * taken / max(taken + worked, 1e-9)
    return f"{worked:.0f} s of work in all stages; {taken:.0f} s more ({share:.0f} %) was shared instead of done again"


@contextmanager
def run_display(console: Console, run: Run, notebooks: list[str]) -> Iterator[None]:
    """In a terminal, a last line during the block: the notebook, the trainings under way, and the time so far."""
    started, shown = time.monotonic(), Text()

    def line() -> Text:
        with suppress(UserError, OSError):  # the manifest is being replaced
            at = run_progress(run, notebooks).at
            shown.plain = f"{at or 'between notebooks'}, {_clock(time.monotonic() - started)}"
        return shown

    live = Live(get_renderable=line, console=console, refresh_per_second=1, transient=True)
    with live if console.is_terminal else nullcontext():
        yield


@contextmanager
def sweep_display(console: Console) -> Iterator[Callable[[SweepProgress], None]]:
    """A function that shows progress: as a table that stays in place in a terminal, elsewhere as a line per change."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda progress: live.update(Text(f"{table(progress.trials)}\n{progress.headline()}"), refresh=True)
        return
    shown = []

    def show(progress: SweepProgress) -> None:
        if progress.counts() not in shown[-1:]:
            shown.append(progress.counts())
            typer.echo(progress.headline())

    yield show


def status_of_all(root: Path, notebooks: list[str]) -> list[str]:
    """A line for every run and sweep in `root`."""
    lines = []
    for folder in sorted(path.parent for path in root.glob(f"*/{MANIFEST}")):
        try:
            if (folder / SWEEP).exists():
                state = f"sweep, {sweep_progress(Sweep.reopen(folder.name, root)).headline()}"
            else:
                progress = run_progress(Run(folder), notebooks)
                state = ": ".join(filter(None, [progress.state, progress.at]))
        except UserError as error:
            state = str(error)
        lines.append(f"{folder.name}: {state}")
    return lines or ["there are no runs yet"]


def status_of(name: str, root: Path, notebooks: list[str]) -> list[str]:
    """The progress of a run or a sweep in `root`. Raises `UserError` if there is none of that name."""
    check_name(name)
    if (root / name / SWEEP).exists():
        sweep = Sweep.reopen(name, root)
        progress = sweep_progress(sweep)
        return [table(progress.trials), progress.headline(), shared_work(sweep)]
    if not (root / name / MANIFEST).exists():
        raise UserError(f"run = {name!r}: there is no such run or sweep; `rarlhf status` lists them.")
    return [table(notebook_progress(Run(root / name), notebooks))]


def _training(run: Run) -> str:
    """The trainings under way: the method, its iteration, and how many there are."""
    found = [folder.name.removesuffix(".checkpoints") for folder in sorted(run.path("training").glob("*.checkpoints"))]
    return ": " + ", ".join(_iteration(run, method) for method in found) if found else ""


def _iteration(run: Run, method: str) -> str:
    settings, log = run.manifest["settings"], run.path("training", f"{method}.jsonl")
    try:
        last = json.loads(log.read_text().splitlines()[-1])
        return f"{method} {last.get('iteration', last.get('step'))}/{_length(settings, method)}"
    except (OSError, ValueError, IndexError):  # it has none, or it is being written
        return method


def _length(settings: dict[str, Any], method: str) -> int:
    """How many iterations the training of a method has; of Quark, steps."""
    if method == "quark":
        return settings["quark"]["steps"]
    if method == CONDITIONED:
        return settings["conditioned"]["iterations"] or 2 * settings["ppo"]["iterations"]
    return settings["critic_free" if MethodKey.parse(method).name in CRITIC_FREE else "ppo"]["iterations"]


def _last_write(run: Run) -> float:
    times = [0.0]
    for path in run.folder.rglob("*"):
        with suppress(OSError):  # removed in the meantime
            times.append(path.stat().st_mtime)
    return max(times)


def _since(moment: float) -> float:
    return max(0.0, time.time() - moment)


def _clock(seconds: float) -> str:
    """00:05, or 1:02:03 with hours."""
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
