"""A worker: a process that runs one iteration for each line it reads, and answers with what the iteration spent.

Lines are JSON. A worker shares this file with the command that asks it, and its environment may lack the project's
libraries, so nothing of `rarlhf_nb` is imported here.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_backward_flop, sdpa_flop

REPOSITORY = Path(__file__).parent.parent
QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}

# By itself, torch counts the fused attention of GPUs alone. Its formulas already take tensors, hence get_raw.
for operator, formula in (
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, sdpa_flop),
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward, sdpa_backward_flop),
):
    register_flop_formula(operator, get_raw=True)(formula)

Spent = dict[str, dict[str, float]]  # {"seconds": {phase: seconds}, "flops": {phase: count}}


class Worker(AbstractContextManager):
    """The asking side: starts `module` with `python` on a shape's folder, and waits until its models are loaded."""

    def __init__(self, python: Path, module: str, folder: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [python, "-E", "-W", "ignore", "-m", module, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)} | QUIET,
        )
        self._answer()

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def iterate(self, **request: Any) -> Spent:
        """What one iteration spends."""
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def memory(self) -> dict[str, int]:
        """The resident bytes, now and at most since the process began, as Linux counts them."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {name: 1024 * int(fields[field].split()[0]) for name, field in (("now", "VmRSS"), ("most", "VmHWM"))}

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.process.args[-2]} ended with exit code {self.process.wait()}; see its error above"
            )
        return json.loads(line)


def serve(iterate: Callable[..., Spent]) -> None:
    """The answering side: call `iterate` with each request; what the libraries print goes to standard error."""
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        print("null", file=answers, flush=True)  # the models are loaded
        for line in sys.stdin:
            print(json.dumps(iterate(**json.loads(line))), file=answers, flush=True)


class Meter:
    """Books the seconds of calls under the names of phases, and the FLOPs of their matrix products if asked.

    Counting slows an iteration down, so seconds and FLOPs come from different iterations.
    """

    def __init__(self, count_flops: bool) -> None:
        self.counter = FlopCounterMode(display=False)
        self.counting = self.counter if count_flops else nullcontext()
        self.spent: Spent = {"seconds": {}, "flops": {}}

    def __call__(self, phase: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The result of the call."""
        started, counted = time.perf_counter(), self.counter.get_total_flops()
        result = call(*args, **options)
        self.spent["seconds"][phase] = time.perf_counter() - started
        self.spent["flops"][phase] = self.counter.get_total_flops() - counted
        return result
