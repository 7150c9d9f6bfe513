"""The first import of the fork server (see `forks`): Ctrl-C while it imports the rest ends it without a traceback."""

import signal

from rarlhf_nb.lab import quick_start  # noqa: F401

signal.signal(signal.SIGINT, signal.SIG_DFL)
