"""Other ways to compute the gradient of an update: micro-batches, gradient checkpointing, torch.compile.

    python -m benchmarks.update --shapes pocket medium --repeats 3

An epoch is the forward and backward pass on all B episodes and then on the 40 % that a tail keeps, as PPO makes it, in
the shapes of `benchmarks.iteration`. The ways take turns, each in a process of its own, whose peak memory above the
loaded policy is the last column. `first` is how much longer the first epoch took: for torch.compile the compilation,
which happens twice, since the second number of episodes makes it compile for any number. Memory is read from /proc, so
this runs on Linux.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.iteration import SHAPES, Shape, write_models
from benchmarks.worker import Worker, serve
from rarlhf_nb.lab.evaluation.cells import markdown_table
from rarlhf_nb.policy import evaluate_tokens, load_policy, use_gradient_checkpointing
from rarlhf_nb.settings import SamplingSettings

WAYS: dict[str, dict[str, Any]] = {
    "all at once": {},
    "16 at once": {"size": 16},
    "8 at once": {"size": 8},
    "4 at once": {"size": 4},
    "checkpointed": {"checkpointed": True},
    "compiled": {"compiled": True},
}

COLUMNS = ["way", "epoch, s", "on the tail, s", "first, s more", "memory, MB"]


class Engine:
    """A policy with B episodes that it has drawn."""

    def __init__(self, folder: Path) -> None:
        shape = json.loads((folder / "shape.json").read_text())
        length = shape["completion"]
        self.sampling = SamplingSettings(completion_length=length, minimum_completion_length=length)
        self.policy = load_policy(folder)
        self.episodes = self.policy.sample(json.loads((folder / "prompts.json").read_text()), self.sampling, seed=1)
        self.forward = None

    def epoch(self, size: int | None = None, checkpointed: bool = False, compiled: bool = False) -> dict[str, float]:
        """The seconds of an epoch on all episodes and on the tail."""
        if self.forward is None:
            self.forward = torch.compile(self.policy.forward) if compiled else self.policy
            if checkpointed:
                use_gradient_checkpointing(self.policy.model)
        return {
            "all": self.gradient(len(self.episodes), size),
            "tail": self.gradient(2 * len(self.episodes) // 5, size),
        }

    def gradient(self, kept: int, size: int | None) -> float:
        """The seconds of the gradient of the first `kept` episodes, `size` at once."""
        started = time.perf_counter()
        for rows in torch.arange(kept).split(size or kept):
            part = self.episodes.take(rows)
            now = evaluate_tokens(self.policy, part, self.sampling, forward=self.forward)
            (now.log_probs.sum() + now.values.square().sum()).backward()
        self.policy.zero_grad()
        return time.perf_counter() - started


def measure(shape: Shape, repeats: int, thread_count: int) -> pd.DataFrame:
    """The table of a shape: one row for each way."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as workers:
        write_models(shape, Path(folder))
        started = {}
        for way in WAYS:
            worker = Worker(Path(sys.executable), "benchmarks.update", Path(folder), thread_count)
            started[way] = workers.enter_context(worker)
        before = {way: worker.memory()["now"] for way, worker in started.items()}
        runs = {way: [worker.iterate(**WAYS[way])] for way, worker in started.items()}
        for _ in range(repeats):
            for way, worker in started.items():
                runs[way].append(worker.iterate(**WAYS[way]))
        memory = {way: worker.memory()["most"] - before[way] for way, worker in started.items()}
    rows = []
    for way, (first, *later) in runs.items():
        whole, tail = (statistics.median(run[part] for run in later) for part in ("all", "tail"))
        more = first["all"] + first["tail"] - whole - tail
        numbers = [f"{seconds:.2f}" for seconds in (whole, tail, more)]
        rows.append([way, *numbers, f"{memory[way] / 1e6:.0f}"])
    return pd.DataFrame(rows, columns=COLUMNS, index=[str(shape)] * len(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["pocket", "medium"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count()))
    args = parser.parse_args()
    print(markdown_table(pd.concat(measure(SHAPES[name], args.repeats, args.threads) for name in args.shapes)), end="")


if __name__ == "__main__":
    if len(sys.argv) == 2 and Path(sys.argv[1]).is_dir():
        serve(Engine(Path(sys.argv[1])).epoch)
    else:
        main()
