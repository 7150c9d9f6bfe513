"""How long the explorer takes from its address to its first figures, and from a move of its slider to the next frame.

    python -m benchmarks.explorer                                # made-up runs of 10,000 episodes per method
    python -m benchmarks.explorer RUN --picture docs/explorer.png   # a run of papermill_runs/, and its first screen

Needs Chromium and playwright. The goals are 5 s and 100 ms, on two idle cores.
"""

import argparse
import queue
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.explorer.page import serve
from rarlhf_nb.lab.methods import METHODS
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.lab.runs import Run

EPISODES = 10_000
SWEEP = ["sft", "rlhf", *(f"{name}@{alpha}" for name in ("ra_rlhf", "ra_rlhf_ru") for alpha in (0.4, 0.2, 0.1))]
READY = "() => document.querySelectorAll('.rarlhf-explorer .main-svg').length > 1"
MOVES = """async () => {
    const input = document.querySelector("[aria-label='measured α']"), times = [];
    for (let move = 1; move <= 40; move++) {
        const started = performance.now();
        input.value = (37 * move) % 100 + 1;
        input.dispatchEvent(new Event("input"));
        await new Promise(requestAnimationFrame);
        times.push(performance.now() - started);
    }
    return times;
}"""


def made_up(methods: Sequence[str], folder: Path) -> Run:
    """A run with normal rewards, prompts of about 100 and completions of about 200 characters."""
    run = Run.open(f"{len(methods)}-methods", load_profile("pocket", {}).model_dump(mode="json"), 1, folder)
    scores = np.random.default_rng(0).normal(size=EPISODES)
    for seed, method in enumerate(methods):
        table = pd.DataFrame(
            {
                "prompt": [f"prompt {row} " + "and so on " * 10 for row in range(EPISODES)],
                "completion": [f"completion {row} " + "and so forth " * 15 for row in range(EPISODES)],
                "prompt_score": scores,
                "reward": scores + 0.1 * seed + np.random.default_rng(seed).normal(size=EPISODES),
                "kl": np.random.default_rng(seed).random(EPISODES),
                "label": 0,
                "group": "all",
                "seed": 0,
            }
        )
        run.write(f"evaluation/{method}.parquet", table)
    return run


@contextmanager
def opened(run: Run) -> Iterator[tuple[Any, float, float]]:
    """The served page of a run in Chromium, the seconds until its address was told, and from there to its figures."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    addresses: queue.Queue[str] = queue.Queue()
    started = time.perf_counter()
    threading.Thread(target=serve, args=(run, port, addresses.put), daemon=True).start()
    address = addresses.get().split()[0]
    told = time.perf_counter() - started
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        started = time.perf_counter()
        page.goto(address)
        page.wait_for_function(READY)
        yield page, told, time.perf_counter() - started
        browser.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="name of a run folder in papermill_runs/")
    parser.add_argument("--picture", type=Path, help="a file for a picture of the first screen")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = (
            [Experiment.reopen(given.run).run]
            if given.run
            else [made_up(methods, Path(folder)) for methods in (list(METHODS), SWEEP)]
        )
        for run in runs:
            with opened(run) as (page, told, ready):
                times = page.evaluate(MOVES)
                if given.picture:
                    page.reload()
                    page.wait_for_function(READY)
                    page.screenshot(path=given.picture)
            print(
                f"{run.folder.name}: address after {told:.1f} s, ready {ready:.1f} s later; a move takes "
                f"{statistics.median(times):.0f} ms in the median and {max(times):.0f} ms at most"
            )


if __name__ == "__main__":
    main()
