"""The lock that lets only one command at a time work on a run folder, with a note of its holder."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psutil
from filelock import FileLock, Timeout

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.runs import Run

LOCK, HOLDER = ".lock", ".holder.json"


@contextmanager
def held(run: Run, wait: float = 0.0) -> Iterator[None]:
    """Hold the run folder inside the block.

    The operating system frees the lock when its process dies. Raises `UserError` if another process still holds the
    folder after `wait` seconds.
    """
    try:
        with FileLock(run.path(LOCK), timeout=wait):
            me = {"process": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            run.write_json(HOLDER, me)
            try:
                yield
            finally:
                run.path(HOLDER).unlink(missing_ok=True)
    except Timeout:
        raise UserError(
            f"run = {run.folder.name!r} is in use{_by(holder(run))}: wait until it ends, or choose another run name."
        ) from None


def holder(run: Run) -> dict[str, Any] | None:
    """Who holds the run: process, host and since when; None where the holder's note names nobody.

    A killed holder leaves its note behind; if it ran on this machine, it is recognised as dead.
    """
    try:
        note = json.loads(run.path(HOLDER).read_text())
        dead = note["host"] == socket.gethostname() and not psutil.pid_exists(note["process"])
        return None if dead else note
    except (OSError, ValueError, KeyError, TypeError):  # not written yet, already removed, or damaged
        return None


def _by(note: dict[str, Any] | None) -> str:
    return f" by process {note['process']} on {note['host']} since {note['since']}" if note else ""
