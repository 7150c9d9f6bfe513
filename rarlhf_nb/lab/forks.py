"""Kernels forked from a process that has imported what the notebooks import: one starts in a second, not in seven.

That process is the fork server of `multiprocessing`, which ends with the runner, as its kernels do. It only imports:
the threads that it has, those of OpenBLAS and of Arrow's allocator, are made for a fork, and torch has none yet.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import LocalProvisioner

from rarlhf_nb.sources import PACKAGE

Answer = TypeVar("Answer")
CONTEXT = multiprocessing.get_context("forkserver")


def share_imports(modules: Iterable[Path]) -> None:
    """Let the server import these files of this package, when the first kernel is started."""
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in modules]
    first = ["rarlhf_nb.lab.fork_server", "ipykernel.kernelapp"]
    CONTEXT.set_forkserver_preload([*first, *(name.removesuffix(".__init__") for name in names)])


def call(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """What a function returns or raises, called in a process that is forked as a kernel is."""
    with ProcessPoolExecutor(1, CONTEXT, initializer=_forked) as pool:
        return pool.submit(function, *arguments).result()


class ForkProvisioner(LocalProvisioner):
    """Starts a kernel of this Python by a fork; everything else is as for a kernel that is started anew."""

    async def launch_kernel(self, cmd: list[str], **launch: Any) -> KernelConnectionInfo:
        """See `LocalProvisioner.launch_kernel`."""
        self.cwd = launch.get("cwd") or os.getcwd()
        self.process = ForkedKernel(os.path.abspath(self.parent.connection_file), self.cwd, launch["env"])
        with _started_from(launch["env"]):
            self.process.start()
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class ForkedKernel(CONTEXT.Process):
    """A kernel, with the methods of a `subprocess.Popen` that `LocalProvisioner` calls.

    connection_file: where the kernel reads its sockets. folder: its current folder.
    """

    stdin = stdout = stderr = None

    def __init__(self, connection_file: str, folder: str, environment: Mapping[str, str]) -> None:
        super().__init__(daemon=True)  # so that a runner that ends does not wait for it
        self.connection_file, self.folder, self.environment = connection_file, folder, dict(environment)

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def run(self) -> None:
        """The kernel itself, in the forked process."""
        from ipykernel import kernelapp

        os.setsid()  # Ctrl-C in the terminal reaches it by way of the runner
        _forked()
        self.daemon = False  # a daemon could not start processes of its own
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        try:
            parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # so that it gives no advice on Ctrl-C
            kernelapp.launch_new_instance(argv=["-f", self.connection_file, parent])
        finally:
            atexit._run_exitfuncs()  # which multiprocessing leaves out; a browser for pictures ends here


def _forked() -> None:
    """In a process that was forked: Ctrl-C raises `KeyboardInterrupt` again, and it ends with the runner."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_runner, daemon=True).start()


def _end_with_runner() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _started_from(environment: Mapping[str, str]) -> Iterator[None]:
    """Inside the block, the process that starts a server or a kernel has `environment` and no script of its own.

    Libraries read the environment when the server imports them, and multiprocessing would run the script again.
    """
    before, main = dict(os.environ), sys.modules["__main__"]
    os.environ.update(environment)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(before)
