"""A process that must not outlive whoever started it."""

import os
import sys
import threading


def end_with_parent() -> None:
    """End this process when the other end of its standard input is closed."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):  # sys.stdin's own lock would abort the interpreter's end
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
