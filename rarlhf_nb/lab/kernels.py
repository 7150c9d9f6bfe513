"""The kernels of batch runs: each has its sockets in its own run's folder, so that runs never meet.

A kernel outlives a killed runner by a second or two. The next runner ends it first, so that two never write to one run.
"""

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
from jupyter_client.manager import AsyncKernelManager

from rarlhf_nb.lab.runs import Run

Answer = TypeVar("Answer")
PROCESS = "process.json"
FORKS = sys.platform == "linux"  # Windows has no fork, and the system libraries of macOS do not survive one
LONGEST_PATH = 90  # bytes; the system allows about a hundred for a socket
KERNEL_ENVIRONMENT = {
    "TQDM_DISABLE": "1",  # in an executed notebook a progress bar stays at "0%"
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RARLHF_STATIC": "1",  # pictures and tables instead of widgets, which nobody is there to move
}


@contextmanager
def kernel_folder(run: Run) -> Iterator[str]:
    """A folder for the files of one kernel, removed at the end; whoever enters must hold the run.

    It lies in the run folder, where the next run removes what a killed one left. Where that path is too long for
    a socket, it is a temporary folder instead.
    """
    own = os.path.relpath(run.path(".kernel"))  # the kernel is started in the current folder
    if len(os.fsencode(own)) > LONGEST_PATH:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    _end_orphan(own)
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
            if FORKS:
                from rarlhf_nb.lab.forks import ForkProvisioner

                self.provisioner = ForkProvisioner(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
            environment = KERNEL_ENVIRONMENT | dict(launch.pop("env", os.environ))
            return await super()._async_pre_start_kernel(env=environment, **launch)

        async def _async_launch_kernel(self, *command: Any, **launch: Any) -> None:
            await super()._async_launch_kernel(*command, **launch)
            started = psutil.Process(self.provisioner.pid).create_time()
            note = {"host": socket.gethostname(), "pid": self.provisioner.pid, "started": started}
            with open(os.path.join(folder, PROCESS), "w") as file:
                json.dump(note, file)

    return IPCKernelManager


def share_imports(modules: list[Path]) -> None:
    """Have these files of the package imported once for all kernels, where they can be forked."""
    if FORKS:
        from rarlhf_nb.lab import forks

        forks.share_imports(modules)


def call_apart(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function returns or raises; where kernels are forked, its process is too, and has their imports."""
    if not FORKS:
        return function(*arguments)
    from rarlhf_nb.lab import forks

    return forks.call(function, *arguments)


def interrupt_kernel(folder: str) -> None:
    """Interrupt the kernel of `folder`, as the stop button of a notebook does."""
    with open(os.path.join(folder, PROCESS)) as file:
        os.kill(json.load(file)["pid"], signal.SIGINT)


def living_kernel(folder: str | Path) -> psutil.Process | None:
    """The kernel on this machine whose files lie in `folder`, if it lives."""
    try:
        with open(os.path.join(folder, PROCESS)) as file:
            note = json.load(file)
        kernel = psutil.Process(note["pid"])
        here = note["host"] == socket.gethostname() and kernel.create_time() == note["started"]
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):  # there is none, or it is gone already
        return None
    return kernel if here else None


def _end_orphan(folder: str) -> None:
    """End the kernel that a killed runner on this machine left in `folder`, and wait until it is gone."""
    kernel = living_kernel(folder)
    if kernel is not None:
        with suppress(psutil.NoSuchProcess):
            kernel.kill()
            kernel.wait(timeout=30)
