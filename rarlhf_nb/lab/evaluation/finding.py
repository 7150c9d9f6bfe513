"""What a run or a sweep found, in one sentence."""

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pandas as pd

from rarlhf_nb.lab.evaluation.cells import interval_cell, read_interval, seeds_cell
from rarlhf_nb.lab.evaluation.metrics import Interval
from rarlhf_nb.lab.methods import method_name


def tail_metric(metrics: Iterable[str]) -> str:
    """The metric that ranks the methods: CVaR 10 %, or else CVaR at the smallest level, or else tail reward."""
    levels = [key for key in metrics if key.startswith("cvar_")]
    if "cvar_10" in levels:
        return "cvar_10"
    return min(levels, key=lambda key: float(key.removeprefix("cvar_")), default="tail_reward")


def finding(
    table: pd.DataFrame, differences: pd.DataFrame, names: dict[str, str], source: Literal["run", "sweep"] = "run"
) -> str:
    """Which method has the best tail, by how much, and at what KL.

    The best method is compared with the first baseline of `differences`; where it is that baseline, with the
    runner-up. The arguments are the fields of `Report`; where `differences` has a column seeds_needed, a lead that
    cannot be told from 0 comes with the number of seeds that could.
    """
    metric = tail_metric(names)
    what = names[metric].replace(", ", " on ", 1)  # "reward, prompts scored ..." is a column's heading
    tails = table[metric].dropna()
    if tails.empty:
        return f"This {source} says nothing about the tail: its {what} has no value."
    best = tails.idxmax()
    own = interval_cell(read_interval(table.loc[best], metric))
    if len(tails) == 1:
        return f"Only {method_name(best)} has a measured tail: its {what} is {own}."
    baseline = next((name for name in differences.index.unique("baseline") if name in tails), None)
    rival = tails.drop(best).idxmax() if baseline == best else baseline
    lead = "" if rival is None else _lead(differences, metric, best, rival, baseline, source)
    return f"{method_name(best)} has the best tail: its {what} is {own}{lead}{_kl(table, best, rival)}."


def _lead(differences: pd.DataFrame, metric: str, best: str, rival: str, baseline: str, source: str) -> str:
    """By how much the best method is ahead, and whether the paired interval excludes 0."""
    row = differences.loc[(rival, best) if best == baseline else (best, rival)]
    value, low, high = read_interval(row, metric)
    ahead = Interval(-value, -high, -low) if best == baseline else Interval(value, low, high)
    other = f"the runner-up {method_name(rival)}" if best == baseline else method_name(rival)
    if ahead.low > 0:
        return f", {interval_cell(ahead)} above {other}"
    needed = row.get("seeds_needed", np.nan)
    could = "" if np.isnan(needed) else f" ({seeds_cell(needed)} could)"
    return f", ahead of {other} by {interval_cell(ahead)}, which this {source} cannot tell from 0{could}"


def _kl(table: pd.DataFrame, best: str, rival: str | None) -> str:
    kl = table["kl"].dropna() if "kl" in table else pd.Series(dtype=float)
    if best not in kl:
        return ""
    other = f" ({method_name(rival)}: {kl[rival]:.2f})" if rival in kl else ""
    return f"; its KL from the SFT policy is {kl[best]:.2f} nats{other}"
