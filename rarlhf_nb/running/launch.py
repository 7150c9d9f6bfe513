"""Starts the processes of one training with torchrun, and shows what they print as they print it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import torch

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.runs import repository
from rarlhf_nb.training.watch import TrainingStopped

KINDS = {kind.__name__: kind for kind in (UserError, TrainingStopped)}
CULPRIT = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")  # torchrun's line on the first failure
LAST_LINES = 8


class RankLost(RuntimeError):
    """A process of a training ended before its time, and with it the others; the message names it."""


def train_on_processes(run: str, method: str, processes: int) -> None:
    """Train a method of a run on several processes of this machine; the checkpoints and the policy lie in the run.

    Ctrl-C reaches every process, so that the training saves a checkpoint first. Raises the `UserError` of a process,
    and `RankLost` where one of them died or failed otherwise.
    """
    with TemporaryDirectory() as trouble:
        ranks = ["--standalone", "--nproc-per-node", str(processes), "-m", "rarlhf_nb.running.rank"]
        command = [sys.executable, "-m", "torch.distributed.run", *ranks, run, method, trouble]
        status, lines = _run(command)
        if status != 0:
            raise _told_error(Path(trouble)) or failure(status, lines)


def _run(command: list[str]) -> tuple[int, list[str]]:
    """Run a command and print its output line by line; returns its status and all lines."""
    process = subprocess.Popen(
        command,
        cwd=repository(),
        env={"OMP_NUM_THREADS": str(torch.get_num_threads()), "TQDM_DISABLE": "1"} | os.environ,
        stdin=subprocess.PIPE,  # whose end tells the ranks that this process is gone
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches it once, from here
    )
    lines: list[str] = []
    try:
        _show(process.stdout, lines)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        lines += process.stdout  # until it has ended; torchrun tells of the interrupt in a traceback
        raise
    finally:
        process.stdin.close()
        process.stdout.close()
    return process.wait(), lines


def _show(output: IO[str], lines: list[str]) -> None:
    """Print and keep the lines of the processes, and only keep what follows when one of them has failed."""
    failed = False
    for line in output:
        lines.append(line.rstrip())
        failed = failed or CULPRIT.search(line) is not None
        if not failed:
            print(lines[-1], flush=True)


def _told_error(trouble: Path) -> UserError | None:
    """The error that the first of the ranks left in the folder, if one did."""
    for note in sorted(trouble.glob("*.json")):
        told = json.loads(note.read_text())
        return KINDS[told["kind"]](told["message"])
    return None


def failure(status: int, lines: list[str]) -> RankLost:
    """The error of a training that torchrun ended with `status`, from the lines that it printed."""
    found = CULPRIT.search("\n".join(lines))
    if found is None:
        return RankLost("\n".join([f"the training's processes ended with status {status}:", *lines[-LAST_LINES:]]))
    code, rank = int(found[1]), int(found[2])
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
    return RankLost(
        f"rank {rank} of the training {how}, and the others were ended with it; the same command goes on from the last "
        "checkpoint."
    )
