"""Who runs the cells of a sweep: processes of this machine, or the workers of an existing Dask cluster.

Either way each attempt at a cell is a process of its own (see `cell`), which ends with whoever started it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.artifacts import code_hash
from rarlhf_nb.provenance import installed_versions

ATTEMPTS = 2
ANSWER_SECONDS = 5  # for a scheduler to answer
LOG, STOP = "cell.log", ".stop"  # in a cell's folder, and in that of the sweep: the request to stop
AT_ONCE = "at once"  # what the latter says if no checkpoint is to be saved first


class Workers(Protocol):
    """Runs cells, `count` at once."""

    count: int

    def run(self, cells: list[str], tell: Callable[[], None]) -> None:
        """Attempt every cell until it is finished or has failed twice; `tell` is called every second.

        Ctrl-C lets every cell save a checkpoint and then ends; a second one ends at once.
        """


def attempt(folder: str, cell: str, threads: int | None = None) -> int:
    """Run one cell of the sweep in `folder` in a process of its own, and return the process's status.

    threads: of a run whose profile leaves their number open. The output goes to `LOG` in the cell's folder.
    """
    sweep = Path(folder)
    (sweep / cell).mkdir(exist_ok=True)
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    command = [sys.executable, "-m", "rarlhf_nb.lab.cell", sweep.name, cell]
    streams = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (sweep / cell / LOG).open("a") as log:
        process = subprocess.Popen(
            command,
            cwd=sweep.parent.parent,
            env=environment,
            stdout=log,
            start_new_session=True,  # so that Ctrl-C reaches it once, by `STOP`
            **streams,
        )
        try:
            asked = False
            while process.poll() is None:
                request = _request(sweep)
                if request == AT_ONCE:
                    os.killpg(process.pid, signal.SIGKILL)
                elif request is not None and not asked:
                    process.send_signal(signal.SIGINT)
                    asked = True
                time.sleep(0.2)
            return process.returncode
        finally:
            process.stdin.close()


def _request(sweep: Path) -> str | None:
    """What the request to stop says, None where there is none."""
    try:
        return (sweep / STOP).read_text()
    except OSError:
        return None


class LocalWorkers:
    """Processes of this machine, `count` at once."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder.resolve(), count
        self.threads = max(1, (os.cpu_count() or 1) // count)

    def run(self, cells: list[str], tell: Callable[[], None]) -> None:
        """See `Workers`."""
        with ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(self._attempts, cell) for cell in cells]
            wait_for(self.folder, lambda: all(future.done() for future in futures), tell)
            for future in futures:
                future.result()

    def _attempts(self, cell: str) -> None:
        for _ in range(ATTEMPTS):
            if (self.folder / STOP).exists() or attempt(str(self.folder), cell, self.threads) == 0:
                return


class DaskWorkers:
    """The workers of the Dask scheduler at `address`, which see the same file system.

    Raises `UserError` where the scheduler does not answer or has no worker, and names workers that cannot take part.
    """

    def __init__(self, folder: Path, address: str) -> None:
        try:
            from distributed import Client
        except ModuleNotFoundError:
            raise UserError("--scheduler needs Dask: pip install distributed.") from None
        self.folder = folder.resolve()
        try:
            self.client = Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:  # a time-out is an OSError
            raise UserError(
                f"--scheduler {address!r} does not answer within {ANSWER_SECONDS} s ({type(error).__name__}): start "
                "one with `dask scheduler`, or correct the address."
            ) from None
        self._check_workers(address)
        self.count = sum(self.client.nthreads().values())

    def _check_workers(self, address: str) -> None:
        found = self.client.run(worker_facts, str(self.folder), on_error="return")
        if not found:
            raise UserError(f"--scheduler {address!r} has no workers: start some with `dask worker {address}`.")
        wanted = worker_facts(str(self.folder))
        for worker, facts in found.items():
            if isinstance(facts, Exception):
                raise UserError(f"worker {worker} cannot take part: {facts}; install the package there.")
            for name, value in wanted.items():
                if facts[name] != value:
                    raise UserError(
                        f"worker {worker} cannot take part: {name} is {facts[name]!r} there and {value!r} here; "
                        "install the same version, and give it the same file system."
                    )

    def run(self, cells: list[str], tell: Callable[[], None]) -> None:
        """See `Workers`. Dask gives the cell of a worker that died to another one."""
        futures = [
            self.client.submit(
                finish_cell, str(self.folder), cell, key=f"{cell}-{os.getpid()}", retries=ATTEMPTS - 1, pure=False
            )
            for cell in cells
        ]
        try:
            wait_for(self.folder, lambda: all(future.done() for future in futures), tell)
        finally:
            self.client.close()


def finish_cell(folder: str, cell: str) -> None:
    """`attempt` as a Dask task: raises `RuntimeError` for a cell that failed, so that Dask tries it again."""
    status = 0 if (Path(folder) / STOP).exists() else attempt(folder, cell)
    if status != 0 and not (Path(folder) / STOP).exists():
        raise RuntimeError(f"cell {cell} ended with status {status}; see {LOG} in its folder")


def worker_facts(folder: str) -> dict[str, Any]:
    """What the workers of one sweep must have in common."""
    return {
        "the code of rarlhf_nb": code_hash(".")[:12],
        **{f"the version of {package}": version for package, version in installed_versions().items()},
        "whether the sweep's folder is there": Path(folder).is_dir(),
    }


def wait_for(folder: Path, done: Callable[[], bool], tell: Callable[[], None]) -> None:
    """Wait until `done`. At Ctrl-C the request to stop is left in the sweep's folder, and the waiting goes on."""
    try:
        _wait(done, tell)
    except KeyboardInterrupt:
        (folder / STOP).touch()
        try:
            _wait(done, tell)
        except KeyboardInterrupt:
            (folder / STOP).write_text(AT_ONCE)
            _wait(done, tell)
        raise


def _wait(done: Callable[[], bool], tell: Callable[[], None]) -> None:
    while not done():
        tell()
        time.sleep(1)
    tell()
