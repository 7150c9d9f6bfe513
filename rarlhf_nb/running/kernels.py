"""The kernels of batch runs: each has its sockets in its own run's folder, so that runs never meet."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jupyter_client.manager import AsyncKernelManager

from rarlhf_nb.core.runs import Run

LONGEST_PATH = 90  # bytes; the system allows about a hundred for a socket
KERNEL_ENVIRONMENT = {
    "TQDM_DISABLE": "1",  # in an executed notebook a progress bar stays at "0%"
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RARLHF_STATIC": "1",  # pictures and tables instead of widgets, which nobody is there to move
}


@contextmanager
def kernel_folder(run: Run) -> Iterator[str]:
    """A folder for the files of one kernel, removed at the end; whoever enters must hold the run.

    It lies in the run folder, where the next run removes what a killed one left. Only where that path is too long for
    a socket it is a temporary folder.
    """
    own = os.path.relpath(run.path(".kernel"))  # the kernel is started in the current folder
    if len(os.fsencode(own)) > LONGEST_PATH:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    shutil.rmtree(own, ignore_errors=True)
    os.mkdir(own, mode=0o700)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def kernel_manager(folder: str) -> type[AsyncKernelManager]:
    """Kernels that talk over file-system sockets in `folder`: no race for a port, no warning about plain TCP.

    They get `KERNEL_ENVIRONMENT`, except for variables that the user has set.
    """

    class IPCKernelManager(AsyncKernelManager):
        transport = "ipc"

        async def _async_pre_start_kernel(self, **launch: Any) -> Any:
            self.connection_file, self.ip = os.path.join(folder, "kernel.json"), os.path.join(folder, "socket")
            environment = KERNEL_ENVIRONMENT | dict(launch.pop("env", os.environ))
            return await super()._async_pre_start_kernel(env=environment, **launch)

    return IPCKernelManager
