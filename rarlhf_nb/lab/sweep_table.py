"""A sweep's progress in a notebook."""

from rarlhf_nb.lab.artifacts import lock_owner
from rarlhf_nb.lab.explorer.progress_table import ProgressTable, Shown, progress_table
from rarlhf_nb.lab.status import sweep_progress
from rarlhf_nb.lab.sweep import Sweep


def sweep_table(name: str, interactive: bool = True) -> ProgressTable | None:
    """The progress of a sweep as a widget that follows it; a batch run shows the table once instead."""
    sweep = Sweep.reopen(name)

    def read() -> Shown:
        found = sweep_progress(sweep)
        return Shown(found.headline(), found.table(), not lock_owner(sweep.folder))

    return progress_table(read, interactive)
