"""One of several processes that train a method: `python -m rarlhf_nb.running.rank RUN METHOD TROUBLE`, by torchrun.

TROUBLE is a folder in which a rank leaves the message of an error that the user can mend. The process ends with whoever
started it.
"""

import json
import sys
import time
from pathlib import Path

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.running.cell import end_with_parent
from rarlhf_nb.running.experiment import Experiment
from rarlhf_nb.running.stages import Train
from rarlhf_nb.training.ranks import connect
from rarlhf_nb.training.watch import TrainingStopped

TOLD = 5.0  # seconds between two lines


def train_as_rank(run: str, method: str) -> None:
    """Train with the other ranks; the main one saves the policy and prints a line every few seconds."""
    stage = Train(Experiment.reopen(run), method)
    trainer = stage.trainer(checkpoints=stage.checkpoints(method))
    told = time.monotonic()
    for stats in trainer:
        if trainer.ranks.main and (time.monotonic() - told > TOLD or trainer.iteration == trainer.iterations):
            shown = ", ".join(f"{name} {stats[key]:.3g}" for name, key in trainer.progress.items())
            print(f"{method}: {trainer.unit} {trainer.iteration} of {trainer.iterations}, {shown}", flush=True)
            told = time.monotonic()
    if trainer.ranks.main:
        stage.save(trainer.policy)


def main() -> None:
    """The process: status 0 if the method is trained, 130 after Ctrl-C, 1 for any other failure."""
    end_with_parent()
    run, method, trouble = sys.argv[1:]
    state = connect()
    try:
        train_as_rank(run, method)
    except UserError as error:
        kind = "TrainingStopped" if isinstance(error, TrainingStopped) else "UserError"
        note = {"kind": kind, "message": str(error)}
        Path(trouble, f"{state.process_index}.json").write_text(json.dumps(note))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    state.destroy_process_group()


if __name__ == "__main__":
    main()
