"""Processes beside the notebooks of a run, which do its stages from the last one backwards.

A notebook finds a stage done, waits for the process that is at it, or does it. Nobody is told what to do: whoever holds
the lock of a stage does it. So no number depends on who did what, and a process that dies costs its own work alone.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import Timeout

from rarlhf_nb.files import files_of
from rarlhf_nb.lab.profiles import Profile
from rarlhf_nb.lab.runs import Run

if TYPE_CHECKING:
    from rarlhf_nb.lab.experiment import Experiment

SAVE_SECONDS = 30.0  # that a training has to save a checkpoint when its process is to end
IMPORTS = 1.5e9  # bytes of a process before it has loaded a model
COPIES = 12  # of the weights, that a training holds at most: two models, gradient, Adam's two moments, activations


def affordable_workers(profile: Profile) -> int:
    """How many processes may work on a run at once: as many as cores and free memory allow, each with its threads.

    One, if the profile leaves the number of threads open, has several processes for each stage, or takes a model of
    unknown size from the hub.
    """
    threads, model = profile.compute.threads, profile.policy.model
    if threads is None or profile.compute.processes > 1 or not (model == "pocket" or Path(model).is_dir()):
        return 1
    weights = 0 if model == "pocket" else sum(file.stat().st_size for file in files_of(Path(model)))
    memory = psutil.virtual_memory().available // (IMPORTS + COPIES * weights)
    return max(1, min((os.cpu_count() or 1) // threads, int(memory)))


@contextmanager
def work_ahead(run: Run, notebooks: list[Path], workers: int) -> Iterator[None]:
    """Inside the block `workers` - 1 processes do stages of these notebooks; none of them outlives this process."""
    command = [sys.executable, "-m", "rarlhf_nb.lab.ahead", str(run.folder.resolve()), *(n.stem for n in notebooks)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    helpers = [subprocess.Popen(command, stdin=subprocess.PIPE, **quiet) for _ in range(workers - 1)]
    try:
        yield
    finally:
        with ExitStack() as ended:  # a second Ctrl-C ends them at once
            for helper in helpers:
                ended.callback(helper.kill)
                helper.stdin.close()
            for helper in helpers:
                with suppress(subprocess.TimeoutExpired):
                    helper.wait(SAVE_SECONDS)


def do_stages(experiment: "Experiment", notebooks: list[str]) -> None:
    """Do the stages of these notebooks that nobody else does, until all of them are done.

    The stage that most others wait for comes first, and then the last one. A stage that fails is left to its notebook,
    which fails likewise and says why.
    """
    stages = [stage for stage in experiment.stages() if stage.notebook in notebooks]
    needs = {stage.name: [other.name for other in stages if set(other.writes) & set(stage.reads)] for stage in stages}
    awaited = Counter(name for others in needs.values() for name in others)
    order = sorted(reversed(stages), key=lambda stage: -awaited[stage.name])
    done: set[str] = set()
    failed: set[str] = set()
    while len(done | failed) < len(stages):
        for stage in order:
            if stage.name in done | failed or not done.issuperset(needs[stage.name]):
                continue
            try:
                stage.run(ahead=True)
                done.add(stage.name)
            except Timeout:  # another process is at it
                continue
            except Exception:
                failed.add(stage.name)
            break
        else:
            time.sleep(0.2)


def main() -> None:
    """The process: `python -m rarlhf_nb.lab.ahead FOLDER NOTEBOOK...`; it ends when its standard input does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(KeyboardInterrupt):
        import torch

        from rarlhf_nb.lab.experiment import Experiment

        if not torch.cuda.is_available():  # which the notebook has for itself
            folder, *notebooks = sys.argv[1:]
            do_stages(Experiment.of(Run(Path(folder))), notebooks)


def _end_with_parent() -> None:
    """An interrupt as by Ctrl-C, so that a training saves a checkpoint."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(SAVE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
