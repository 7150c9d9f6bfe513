"""The lock that lets only one command at a time work on a run folder, with a note of its holder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from filelock import FileLock, Timeout

from rarlhf_nb.core.errors import UserError
from rarlhf_nb.core.runs import Run

LOCK, HOLDER = ".lock", ".holder.json"


@contextmanager
def held(run: Run) -> Iterator[None]:
    """Hold the run folder inside the block.

    The operating system frees the lock when its process dies. Raises `UserError` if another process holds the folder.
    """
    try:
        with FileLock(run.path(LOCK), blocking=False):
            me = {"process": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            run.write_json(HOLDER, me)
            try:
                yield
            finally:
                run.path(HOLDER).unlink(missing_ok=True)
    except Timeout:
        raise UserError(
            f"run = {run.folder.name!r} is in use{_holder(run)}: wait until it ends, or choose another run name."
        ) from None


def _holder(run: Run) -> str:
    try:
        holder = json.loads(run.path(HOLDER).read_text())
        return f" by process {holder['process']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError):  # the note is not written yet, or already removed
        return ""
