"""Starts the ranks of a run with torchrun, hands them one stage after another, and shows what they print.

Starting them takes longer than a small evaluation, so they wait for the next stage when one is done.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from rarlhf_nb.errors import UserError
from rarlhf_nb.monitor import TrainingStopped

KINDS = {kind.__name__: kind for kind in (UserError, TrainingStopped)}
DONE = "[the ranks are ready]"  # ends what they print of a stage
CULPRIT = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")  # torchrun's line on the first failure
LAST_LINES = 8


class RankLost(RuntimeError):
    """A process of a stage ended before its time, and with it the others; the message names it."""


class Crew:
    """Ranks of this machine that wait for stages; they end with this process, and all of them when one fails."""

    def __init__(self, count: int) -> None:
        """Start them, and return when they are ready; raises what `do` raises."""
        started = time.perf_counter()
        self.count, self.stages = count, 0
        self.folder = TemporaryDirectory(prefix="rarlhf-")
        ranks = ["--standalone", "--nproc-per-node", str(count), "-m", "rarlhf_nb.lab.rank", self.folder.name]
        settings = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *ranks],
            env=settings | os.environ,
            stdin=subprocess.PIPE,  # whose end tells the ranks that this process is gone
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that Ctrl-C reaches it once, from here
        )
        self._show()
        print(f"{count} processes started in {time.perf_counter() - started:.1f} s", flush=True)

    @property
    def waits(self) -> bool:
        """Whether it can do a further stage."""
        return self.process.poll() is None

    def do(self, folder: Path, stage: str, **limits: Any) -> None:
        """Do a stage of the run in `folder` on all ranks; the main one writes its files there.

        Ctrl-C reaches every rank, so that a training saves a checkpoint first. Raises the `UserError` of a rank, and
        `RankLost` where one of them died or failed otherwise.
        """
        order = order_file(Path(self.folder.name), self.stages)
        unfinished = order.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"folder": str(folder.resolve()), "stage": stage, **limits}))
        os.replace(unfinished, order)
        self.stages += 1
        self._show()

    def end(self) -> None:
        """End the ranks, whatever they do."""
        self.process.communicate()  # which closes their standard input

    def _show(self) -> None:
        """Print what the ranks print until they are ready for the next stage."""
        lines, failed, ready = [], False, False
        try:
            while not ready and (line := self.process.stdout.readline()):
                line, ready, _ = line.rstrip().partition(DONE)
                lines.append(line)
                failed = failed or CULPRIT.search(line) is not None
                if line and not failed:  # what follows a failure is torchrun's account of it
                    print(line, flush=True)
        except KeyboardInterrupt:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.stdout.read()  # until they have ended; torchrun tells of the interrupt in a traceback
            finally:
                self.end()
            raise
        if not ready:
            self.end()
            raise self._reported_error() or failure(self.process.returncode, lines)

    def _reported_error(self) -> UserError | None:
        """The error that the first of the ranks left, if one did."""
        for note in sorted(Path(self.folder.name).glob(trouble_file(Path(), "*").name)):
            reported = json.loads(note.read_text())
            return KINDS[reported["kind"]](reported["message"])
        return None


_crew: Crew | None = None


def work_on_processes(processes: int, folder: Path, stage: str, **limits: Any) -> None:
    """`Crew.do` by so many ranks: those of the stage before, or new ones."""
    global _crew
    if _crew is None or _crew.count != processes or not _crew.waits:
        if _crew is not None:
            _crew.end()
        _crew = None
        _crew = Crew(processes)
    _crew.do(folder, stage, **limits)


def order_file(folder: Path, number: int) -> Path:
    """Where the ranks find their next stage."""
    return folder / f"stage-{number}.json"


def trouble_file(folder: Path, rank: str) -> Path:
    """Where a rank leaves the message of its error."""
    return folder / f"trouble-{rank}.json"


def failure(status: int, lines: list[str]) -> RankLost:
    """The error of ranks that torchrun ended with `status`, from the lines that it printed."""
    found = CULPRIT.search("\n".join(lines))
    if found is None:
        return RankLost("\n".join([f"the processes ended with status {status}:", *lines[-LAST_LINES:]]))
    code, rank = int(found[1]), int(found[2])
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
    return RankLost(
        f"rank {rank} {how}, and the others were ended with it; the same command goes on from the last checkpoint."
    )
