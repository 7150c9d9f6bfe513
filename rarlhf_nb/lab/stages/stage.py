"""What a stage of a run is, and when its work is done, taken from another run, or still to do."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.lab.artifacts import (
    KEEP,
    Record,
    code_hash,
    damaged_files,
    fetch,
    read_record,
    record_file,
    share,
    stage_lock,
    stage_output,
)
from rarlhf_nb.lab.processes import run_on_processes
from rarlhf_nb.lab.workspace import Workspace


@dataclass(frozen=True)
class Stage:
    """A piece of work of a run, which is done again only if something that determines its files has changed.

    name: in records and messages. notebook: the one that runs it. reads, writes: paths in the run folder; a folder
    stands for all that lies in it. settings: what determines the files besides those that it reads, the number of
    threads and the code, as JSON. work: does the work, given the stage; of several processes, each does its part and
    one writes. code: what the work uses of the lab besides the stages. trainings: the names of its trainings, which
    save checkpoints. processes: that do the work together.
    """

    workspace: Workspace
    name: str
    notebook: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    settings: dict[str, Any]
    work: Callable[..., None]
    code: tuple[str, ...] = ()
    trainings: tuple[str, ...] = ()
    processes: int = 1

    def run(self, ahead: bool = False) -> None:
        """Do the work, unless it is done already, here or in another run of the same sweep.

        ahead: by a process beside the notebooks, which waits for nobody and keeps for the notebook what the work says.
        Raises `filelock.Timeout` if another process is at this stage.
        """
        run, fingerprint = self.workspace.run, self.fingerprint
        with stage_lock(run.folder, fingerprint, timeout=0 if ahead else -1):
            if not ahead:
                self._say_what_was_kept()
            if not self._finished(fingerprint):
                run.path(record_file(self.name)).unlink(missing_ok=True)
                taken = fetch(run.folder, fingerprint, self.writes)
                if taken:
                    print(f"{self.name}: taken from run {taken.taken_from}; it took {taken.seconds:.0f} s there")
                    self._record(fingerprint, taken.seconds, taken.taken_from)
                else:
                    started = time.perf_counter()
                    with self._output_kept() if ahead else nullcontext():
                        self.do()
                    share(run.folder, self._record(fingerprint, round(time.perf_counter() - started, 1)))
            for training in self.trainings:
                shutil.rmtree(self._checkpoints(training), ignore_errors=True)

    @contextmanager
    def _output_kept(self) -> Iterator[None]:
        place = stage_output(self.workspace.run.folder, self.fingerprint)
        with place.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            yield

    def _say_what_was_kept(self) -> None:
        place = stage_output(self.workspace.run.folder, self.fingerprint)
        if place.exists():
            print(place.read_text(), end="")
            place.unlink()

    def do(self, **limits: Any) -> None:
        """Do the work in this process or, if there are to be several, in those; `limits` are arguments of the work."""
        if self.processes == 1:
            self.work(self, **limits)
        else:
            run_on_processes(self.processes, self.work, self, **limits)

    @cached_property  # it reads all that the stage reads, which may be models of several GB
    def fingerprint(self) -> str:
        """A hash of everything that determines the files; after the dash, of the code.

        Raises `UserError` if an earlier stage left nothing.
        """
        parts = {
            "settings": self.settings,
            "threads": self.workspace.run.manifest.get("threads"),
            "reads": [self.workspace.recorded(place) for place in self.reads],
        }
        inputs = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return f"{inputs[:24]}-{code_hash('workspace.py', 'stages', *self.code)[:8]}"

    def checkpoints(self, training: str) -> Checkpoints:
        """The checkpoints of one of its trainings; those of other settings or other code are passed over."""
        return Checkpoints(self._checkpoints(training) / self.fingerprint)

    def _finished(self, fingerprint: str) -> bool:
        """Whether the record says so and the files are whole; a line says what is kept, and why."""
        folder = self.workspace.run.folder
        record = read_record(folder, self.name)
        if record is None:
            return False
        changed = record.fingerprint != fingerprint
        code_alone = record.fingerprint.split("-")[0] == fingerprint.split("-")[0]
        if (changed and not (code_alone and os.environ.get(KEEP))) or damaged_files(folder, record):
            return False
        print(f"{self.name}: kept{' although the code has changed' if changed else ''}; it took {record.seconds:.0f} s")
        return True

    def _record(self, fingerprint: str, seconds: float, taken_from: str | None = None) -> Record:
        entries = {"stage": self.name, "fingerprint": fingerprint, "notebook": self.notebook}
        return self.workspace.run.record(self.writes, **entries, seconds=seconds, taken_from=taken_from)

    def _checkpoints(self, training: str) -> Path:
        return self.workspace.run.path("training", f"{training}.checkpoints")
