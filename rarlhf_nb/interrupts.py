"""Ctrl-C that waits for a good moment."""

import signal
import threading
from collections.abc import Callable
from typing import Any


class InterruptLater:
    """Inside the block Ctrl-C, or a notebook's stop button, only sets `asked`; a second one interrupts at once.

    then: called at the first one. Outside the main thread, which no interrupt reaches, the block changes nothing.
    """

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.asked, self.then = False, then

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
        if self.then is not None:
            self.then()
