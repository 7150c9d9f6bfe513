"""The kernel of a run's notebooks: IPython's, deaf to Ctrl-C while it answers its runner's last question."""

import signal
from typing import Any

from ipykernel.ipkernel import IPythonKernel


class RunnerKernel(IPythonKernel):
    """A kernel that ends without a word after its last cell.

    Papermill asks for `kernel_info` after the last cell, and on the reply the runner interrupts the kernel and shuts it
    down. ipykernel 7.4 sends the reply before it ignores interrupts again, so on a busy machine it reports a
    KeyboardInterrupt on stderr and waits ten seconds for a thread that has ended.
    """

    async def kernel_info_request(self, *message: Any) -> None:
        """Answer with interrupts ignored; the next message restores what ipykernel sets for it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        await super().kernel_info_request(*message)
