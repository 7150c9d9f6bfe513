"""How long the explorer takes from a move of its slider to its last message for the browser.

    python -m benchmarks.slider

Prints the median and the slowest move in ms, for 10,000 episodes per method; the goal is 100 ms. The time that the
browser takes to draw is not included. Now and then Python collects its garbage after the last message, for a quarter
of a second.
"""

import statistics
import time

import numpy as np
import pandas as pd

from rarlhf_nb.core.methods import METHODS
from rarlhf_nb.showing.widgets import RiskExplorer, risk_explorer

EPISODES, MOVES = 10_000, 40
SWEEP = ["sft", "rlhf", *(f"{name}@{alpha}" for name in ("ra_rlhf", "ra_rlhf_ru") for alpha in (0.4, 0.2, 0.1))]


def made_up(methods: list[str]) -> dict[str, pd.DataFrame]:
    """Episodes tables with normal rewards, prompts of about 100 and completions of about 200 characters."""
    scores = np.random.default_rng(0).normal(size=EPISODES)
    return {
        method: pd.DataFrame(
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
        for seed, method in enumerate(methods)
    }


def moves(explorer: RiskExplorer, values: np.ndarray) -> list[float]:
    """Milliseconds from each move to its last message, which updates the table or the texts, after the figures."""
    sent: list[float] = []
    for part in (explorer.table, explorer.texts):
        part.observe(lambda _: sent.append(time.perf_counter()), "value")
    times = []
    for value in values:
        started = time.perf_counter()
        explorer.alpha.value = value
        times.append(1000 * (sent[-1] - started))
    return times


def main() -> None:
    values = np.random.default_rng(1).permutation(np.arange(1, 101))[:MOVES] / 100  # no value twice: each is a move
    for name, methods in ((f"{len(METHODS)} methods", list(METHODS)), ("a sweep", SWEEP)):
        tables = made_up(methods)
        started = time.perf_counter()
        explorer = risk_explorer(tables)
        built = time.perf_counter() - started
        for ranking in ("reward", "prompt_score"):
            explorer.ranking.value = ranking
            times = moves(explorer, values)
            slowest = max(times)
            print(
                f"{name}, tail by {ranking}: median {statistics.median(times):.0f} ms, slowest {slowest:.0f} ms "
                f"(built in {built:.1f} s)"
            )


if __name__ == "__main__":
    main()
