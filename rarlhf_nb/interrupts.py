"""Ctrl-C that waits for a good moment."""

import signal
import threading
from typing import Any


class InterruptLater:
    """Inside the block Ctrl-C, or a notebook's stop button, only sets `asked`; a second one interrupts at once.

    Outside the main thread, which no interrupt reaches, the block changes nothing.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "InterruptLater":
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        if self.in_main_thread:
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        if self.in_main_thread:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, *arguments: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
