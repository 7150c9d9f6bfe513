"""Processes of this machine that do a stage together: a pool of ranks, which wait for the next stage in between.

Starting them takes longer than a small evaluation, so the pool stays until this process ends.
"""

import gc
import io
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from rarlhf_nb.distributed import connect
from rarlhf_nb.errors import UserError

SAVE_SECONDS = 30.0  # that a training has after Ctrl-C to save a checkpoint


class RankLost(RuntimeError):
    """A process of a stage ended before its time, and with it the others; the message names it."""


class WorkerPool:
    """Ranks that wait for work; they end with this process, and all of them when one fails.

    count: how many there are. Raises what `run` raises if they cannot be started.
    """

    def __init__(self, count: int) -> None:
        started = time.perf_counter()
        self.ranks: dict[Connection, BaseProcess] = {}
        context = multiprocessing.get_context("spawn")
        world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        world["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        for rank in range(count):
            pipe, theirs = context.Pipe()
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=_serve, args=(theirs, world | own), name=f"rank {rank}", daemon=True)
            process.start()
            theirs.close()
            self.ranks[pipe] = process
        self._await()
        print(f"{count} processes started in {time.perf_counter() - started:.1f} s", flush=True)

    def run(self, work: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Call `work` on all ranks, and print what they print; it and its arguments must survive a pipe.

        Ctrl-C reaches every rank, so that a training saves a checkpoint first. Raises the `UserError` of a rank, a
        `RuntimeError` with the traceback of any other error, and `RankLost` if one of them dies.
        """
        for pipe in self.ranks:
            pipe.send((work, arguments, options, torch.get_num_threads()))
        self._await()

    def end(self) -> None:
        """End the ranks, whatever they do."""
        for pipe, process in self.ranks.items():
            process.kill()
            process.join()
            pipe.close()

    def _await(self) -> None:
        """Print what the ranks print until all have done their part."""
        try:
            working = dict(self.ranks)
            while working:
                for pipe in wait(list(working)):
                    if self._receive(pipe):
                        del working[pipe]
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                self._interrupt()
            self.end()
            raise

    def _interrupt(self) -> None:
        """Pass Ctrl-C on, and wait until the ranks have ended; a second one, or too long a wait, ends the waiting."""
        for process in self.ranks.values():
            os.kill(process.pid, signal.SIGINT)
        until = time.monotonic() + SAVE_SECONDS
        with suppress(KeyboardInterrupt):
            for process in self.ranks.values():
                process.join(max(0.0, until - time.monotonic()))

    def _receive(self, pipe: Connection) -> bool:
        """Take a rank's next message: a text to print, an exception to raise, or None if it has done its part."""
        try:
            message = pipe.recv()
        except EOFError:
            self.ranks[pipe].join()
            raise _lost(self.ranks[pipe]) from None
        if isinstance(message, str):
            print(message, end="", flush=True)
        elif isinstance(message, UserError):
            raise message
        elif message is not None:  # it may have failed because another rank died
            dead = wait([process.sentinel for process in self.ranks.values()], timeout=2)
            raise next((_lost(process) for process in self.ranks.values() if process.sentinel in dead), message)
        return message is None


_pool: WorkerPool | None = None


def run_on_processes(count: int, work: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """`WorkerPool.run` by so many processes: those of the call before, or new ones."""
    global _pool
    usable = _pool is not None and all(process.is_alive() for process in _pool.ranks.values())
    if not usable or len(_pool.ranks) != count:
        if _pool is not None:
            _pool.end()
        _pool = None
        _pool = WorkerPool(count)
    _pool.run(work, *arguments, **options)


def _lost(process: BaseProcess) -> RankLost:
    code = process.exitcode
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return RankLost(
        f"{process.name} {how}, and the others were ended with it; the same command goes on from the last checkpoint."
    )


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


class _Printer(io.TextIOBase):
    """A rank's standard output, whose lines the pool prints."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.rest = pipe, ""

    def write(self, text: str) -> int:
        lines, end, self.rest = (self.rest + text).rpartition("\n")
        if end:
            self.pipe.send(lines + end)
        return len(text)


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    """A rank: joins the others, and does one piece of work after another until the pool's process ends."""
    os.setsid()  # Ctrl-C comes from the pool alone
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_pool, daemon=True).start()
    os.environ |= environment
    sys.stdout = sys.stderr = _Printer(pipe)
    try:
        connect()
        while True:
            pipe.send(None)
            work, arguments, options, threads = pipe.recv()
            torch.set_num_threads(threads)
            work(*arguments, **options)
            gc.collect()
    except KeyboardInterrupt:
        os._exit(130)  # the threads of gloo may abort the interpreter's end
    except Exception as error:  # its text alone, since not every error survives a pipe
        text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        pipe.send(UserError(str(error)) if isinstance(error, UserError) else RuntimeError(text))
        _end_with_pool()


def _end_with_pool() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
