"""`rarlhf sweep`: the runs of a grid as tasks of Dask, then the notebooks and the report of the whole sweep."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
from distributed import Client, Future, LocalCluster

from rarlhf_nb.errors import UserError, first_line
from rarlhf_nb.lab.ahead import SAVE_SECONDS
from rarlhf_nb.lab.artifacts import code_hash, run_lock
from rarlhf_nb.lab.evaluation.sweep_report import SweepReport, build_sweep_report
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.notebooks import notebook_files, run_notebooks
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.status import SweepProgress, sweep_progress
from rarlhf_nb.lab.sweep import SWEEP_NOTEBOOKS, TRIAL_NOTEBOOKS, Grid, Sweep, Trial
from rarlhf_nb.lab.sweep_experiment import sweep_scores
from rarlhf_nb.provenance import installed_versions

ANSWER_SECONDS = 5  # for a scheduler to answer
WAIT = 60.0  # seconds for a run folder that somebody else still holds, such as a process that is about to die


@contextmanager
def local_client(grid: Grid, workers: int | None = None) -> Iterator[Client]:
    """A client of `workers` threads in this process, which suffice, since every notebook has a process of its own.

    workers: by default as many as the cores allow. Nobody else can reach them: a Dask scheduler with a port would
    execute what any user of this machine sends.
    """
    cores, trials = os.cpu_count() or 1, grid.trials()
    workers = min(workers or max(1, cores // (grid.settings(trials[0]).compute.threads or 1)), len(trials))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    places = dict.fromkeys(("dashboard_address", "worker_dashboard_address"), "127.0.0.1:0")
    options = {"processes": False, "protocol": "inproc://", "memory_limit": 0, "silence_logs": logging.CRITICAL}
    with (
        LocalCluster(n_workers=1, threads_per_worker=workers, **options, **places) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        try:
            yield client
        except KeyboardInterrupt:
            _end_notebooks()
            raise


def _end_notebooks() -> None:
    """Interrupt every notebook, so that a training saves a checkpoint; those that do not end are left to their fate.

    They end with this process, as they do after a second Ctrl-C.
    """
    kernels, alive = psutil.Process().children(), True
    with suppress(KeyboardInterrupt):
        for kernel in kernels:
            kernel.send_signal(signal.SIGINT)
        alive = psutil.wait_procs(kernels, timeout=SAVE_SECONDS)[1]
    if alive:  # and a thread waits for each, so that the interpreter would not end
        print("interrupted: the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(130)


@contextmanager
def remote_client(address: str, folder: Path) -> Iterator[Client]:
    """A client of the Dask scheduler at `address`, whose workers see the sweep's folder.

    Raises `UserError` if the scheduler does not answer or has no worker, and names workers that cannot take part.
    """
    try:
        client = Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # a time-out is an OSError
        raise UserError(
            f"--scheduler {address!r} does not answer within {ANSWER_SECONDS} s ({type(error).__name__}): start "
            "one with `dask scheduler`, or correct the address."
        ) from None
    with client:
        _check_workers(client, address, str(folder.resolve()))
        yield client


def _check_workers(client: Client, address: str, folder: str) -> None:
    workers = client.run(worker_facts, folder, on_error="return")
    if not workers:
        raise UserError(f"--scheduler {address!r} has no workers: start some with `dask worker {address}`.")
    here = worker_facts(folder)
    for worker, facts in workers.items():
        if isinstance(facts, Exception):
            raise UserError(f"worker {worker} cannot take part: {facts}; install the package there.")
        for name, value in here.items():
            if facts[name] != value:
                raise UserError(
                    f"worker {worker} cannot take part: {name} is {facts[name]!r} there and {value!r} here; "
                    "install the same version, and give it the same file system."
                )


def worker_facts(folder: str) -> dict[str, Any]:
    """What the workers of one sweep must have in common."""
    return {
        "the code of rarlhf_nb": code_hash(".")[:12],
        **{f"the version of {package}": version for package, version in installed_versions().items()},
        "whether the sweep's folder is there": Path(folder).is_dir(),
    }


def run_sweep(
    sweep: Sweep, client: Client, show: Callable[[SweepProgress], None], echo: Callable[[str], None] = print
) -> SweepReport:
    """Finish every run of the sweep, then run notebooks 05 and 06 on the sweep and report it.

    A run that fails is tried once more, and then left behind. show: gets the progress every second. echo: gets a line
    about every failure and every notebook of the sweep. Raises `UserError` if another process works on the sweep or no
    run could be finished, and the errors of `run_notebooks`.
    """
    name = sweep.folder.name
    with run_lock(sweep.folder):
        _run_trials(sweep, client, show, echo)
    if not sweep.finished_trials():
        raise UserError(f"no run of sweep {name!r} could be finished: see `rarlhf status {name}`.")
    report = write_sweep_report(sweep)
    parameters = {"profile": sweep.grid.profile, "run": name, "seed": sweep.grid.seeds[0], "overrides": {}}
    notebooks = [path for path in notebook_files() if path.stem in SWEEP_NOTEBOOKS]
    run_notebooks(sweep, notebooks, parameters, echo=echo)
    return report


def _run_trials(
    sweep: Sweep, client: Client, show: Callable[[SweepProgress], None], echo: Callable[[str], None]
) -> None:
    workers = sum(client.nthreads().values())
    waiting = {_submit(sweep, client, trial): trial for trial in sweep.grid.trials()}
    try:
        while waiting:
            for future in [future for future in waiting if future.done()]:
                trial = waiting.pop(future)
                trouble = future.exception() or _report(sweep.trial_run(trial))
                if trouble:
                    echo(f"{trial.name}: {first_line(trouble)}")
            show(sweep_progress(sweep, workers))
            time.sleep(1)
    except KeyboardInterrupt:
        _stop(client, list(waiting))
        raise


def _submit(sweep: Sweep, client: Client, trial: Trial) -> Future:
    settings, place = sweep.grid.settings(trial).model_dump(mode="json"), str(sweep.folder.resolve())
    parameters = {"profile": sweep.grid.profile, "seed": trial.seed, "overrides": trial.overrides}
    return client.submit(run_trial, place, trial.name, settings, parameters, os.getcwd(), retries=1, pure=False)


def run_trial(folder: str, name: str, settings: dict[str, Any], parameters: dict[str, Any], home: str) -> None:
    """Run the notebooks of the trial `name` in the sweep's folder; a task of Dask. home: where the command was given.

    Raises `UserError` for a folder that belongs to other settings, and the errors of `run_notebooks`.
    """
    place = Path(folder)
    run = Run.open(f"{place.name}/{name}", settings, parameters["seed"], place.parent)
    notebooks = [path for path in notebook_files(Path(home)) if path.stem in TRIAL_NOTEBOOKS]
    parameters = parameters | {"run": run.name}
    try:
        run_notebooks(run, notebooks, parameters, wait=WAIT, folder=Path(home), echo=lambda line: None)
    except KeyboardInterrupt:  # of the notebook, which ended it; here it would end the worker
        raise RuntimeError("interrupted") from None


def _report(run: Run) -> Exception | None:
    """Write a run's report; returns what went wrong, if anything did."""
    try:
        with redirect_stdout(StringIO()):
            Experiment.of(run).report()
    except Exception as error:
        return error
    return None


def _stop(client: Client, futures: list[Future]) -> None:
    """Begin no further run; the workers of a cluster that have one are restarted, which ends it."""
    mine = {future.key for future in futures}
    busy = [worker for worker, keys in client.processing().items() if mine & set(keys)]
    client.cancel(futures)
    if client.cluster is None:
        client.restart_workers(busy)


def write_sweep_report(sweep: Sweep) -> SweepReport:
    """Write sweep_report.md and sweep_report.json: every method over seeds, and what the sweep found."""
    report = build_sweep_report(sweep_scores(sweep))
    sweep.write("sweep_report.md", report.to_markdown())
    sweep.write("sweep_report.json", report.to_json())
    return report
