"""What a stage of a run is, and when its work is done, taken from another run, or still to do."""

import hashlib
import json
import shutil
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rarlhf_nb.checkpoint import Checkpoints
from rarlhf_nb.lab import shelf
from rarlhf_nb.lab.processes import run_on_processes
from rarlhf_nb.lab.records import damaged_files, read_record, record_file
from rarlhf_nb.lab.workspace import Workspace
from rarlhf_nb.sources import code_hash


@dataclass(frozen=True)
class Stage(ABC):
    """A piece of work of a run, repeated only when something that determines it has changed.

    Its files are determined by `settings`, the seed, the number of threads, the files that it reads, and the code of
    the stage and of `modules`. `reads` and `writes` are paths in the run folder; a folder stands for all that lies in
    it.
    """

    workspace: Workspace
    modules: ClassVar[tuple[str, ...]]  # what does the work, such as "trainer"
    seeded: ClassVar[bool] = True  # whether the seed of the run determines the files
    trainings: ClassVar[tuple[str, ...]] = ()  # the names of its trainings, which save checkpoints
    processes: ClassVar[int] = 1  # that do the work together

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in records and messages."""

    @property
    @abstractmethod
    def notebook(self) -> str:
        """The notebook that runs it."""

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """What earlier stages must have left."""

    @property
    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """What this stage leaves."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings and models that determine the files, as JSON."""

    @abstractmethod
    def work(self) -> None:
        """Do the work and write the files; of several processes, each does its part and one writes."""

    @abstractmethod
    def result(self) -> Any:
        """What a notebook shows of the finished stage, read from its files."""

    def run(self) -> Any:
        """Do the work, unless it is done already, here or in another run of the same sweep; returns `result()`."""
        run = self.workspace.run
        fingerprint = self.fingerprint()
        with shelf.alone(run, fingerprint):
            record = read_record(run.folder, self.name)
            if record and record.fingerprint == fingerprint and not damaged_files(run.folder, record):
                print(f"{self.name}: kept; it took {record.seconds:.0f} s")
            else:
                run.path(record_file(self.name)).unlink(missing_ok=True)
                taken = shelf.take(run, fingerprint, self.writes)
                if taken:
                    print(f"{self.name}: taken from run {taken.taken_from}; it took {taken.seconds:.0f} s there")
                    self._record(fingerprint, taken.seconds, taken.taken_from)
                else:
                    started = time.perf_counter()
                    self.do()
                    self._record(fingerprint, round(time.perf_counter() - started, 1))
                    shelf.put(run, self.name, fingerprint)
                for training in self.trainings:
                    shutil.rmtree(self._checkpoints(training), ignore_errors=True)
        return self.result()

    def do(self, **limits: Any) -> None:
        """Do the work in this process or, if there are to be several, in those. limits: arguments of `work`."""
        if self.processes == 1:
            self.work(**limits)
        else:
            run_on_processes(self.processes, self.work, **limits)

    def checkpoints(self, training: str) -> Checkpoints:
        """The checkpoints of one of its trainings; those of other settings or other code are passed over."""
        return Checkpoints(self._checkpoints(training) / self.fingerprint())

    def _checkpoints(self, training: str) -> Path:
        return self.workspace.run.path("training", f"{training}.checkpoints")

    def _record(self, fingerprint: str, seconds: float, taken_from: str | None = None) -> None:
        self.workspace.run.record(
            self.writes,
            stage=self.name,
            fingerprint=fingerprint,
            notebook=self.notebook,
            seconds=seconds,
            taken_from=taken_from,
        )

    def fingerprint(self) -> str:
        """A hash of everything that determines the files. Raises `UserError` where an earlier stage left nothing."""
        run = self.workspace.run
        parts = {
            "settings": self.settings,
            "seed": self.workspace.seed if self.seeded else None,
            "threads": run.manifest.get("threads"),
            "reads": [self.workspace.recorded(place) for place in self.reads],
            "code": code_hash(self.modules, *self._kinds()),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def _kinds(self) -> list[type]:
        """The classes whose code is the stage's work: its own and those that it shares with its like."""
        return [kind for kind in type(self).__mro__ if issubclass(kind, Stage) and kind is not Stage]

    @property
    def trained_reward(self) -> tuple[str, ...]:
        """The reward model, where the run trains its own."""
        return ("reward",) if self.workspace.profile.reward.model == "train" else ()
