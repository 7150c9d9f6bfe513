"""One of several processes that do stages together: torchrun starts `python -m rarlhf_nb.lab.rank FOLDER`.

FOLDER is where the stages to do arrive, one file each (see `launch`), and where a rank leaves the message of an error
that the user can mend. The process waits for the next stage until it ends with whoever started it.
"""

import gc
import json
import os
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from rarlhf_nb.distributed import Ranks, connect
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.launch import DONE, order_file, trouble_file
from rarlhf_nb.lab.parent import end_with_parent
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.stages import evaluation_stage, training_stage
from rarlhf_nb.monitor import TrainingStopped

STAGES = {"train": training_stage, "evaluate": evaluation_stage}  # by the first word of their names
POLL = 0.05  # seconds


def await_order(file: Path) -> dict[str, Any]:
    """The next stage to do, once there is one. Polls a file, since a collective of torch would time out."""
    while not file.exists():
        time.sleep(POLL)
    return json.loads(file.read_text())


def do_stage(folder: str, stage: str, **limits: Any) -> None:
    """Do this rank's part of a stage of the run in `folder`, and write its files if this is the main rank."""
    kind, method = stage.split()
    STAGES[kind](Experiment.of(Run(Path(folder))), method).work(**limits)


def serve(folder: Path) -> None:
    """Do one stage after another, together with the other ranks."""
    ranks = Ranks(connect())
    for number in count():
        ranks.all_gather(None)  # all are ready
        if ranks.main:
            print(DONE, flush=True)
        do_stage(**await_order(order_file(folder, number)))
        gc.collect()


def main() -> None:
    """The process: status 130 after Ctrl-C, and 1 for any other failure."""
    end_with_parent()
    folder = Path(sys.argv[1])
    try:
        serve(folder)
    except UserError as error:
        kind = "TrainingStopped" if isinstance(error, TrainingStopped) else "UserError"
        trouble_file(folder, os.environ["RANK"]).write_text(json.dumps({"kind": kind, "message": str(error)}))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
