"""What a reader must know about the numbers of a sweep's report."""

from itertools import product

import pandas as pd

from rarlhf_nb.lab.evaluation.cells import counted
from rarlhf_nb.lab.evaluation.finding import tail_metric
from rarlhf_nb.lab.evaluation.sweeps import SAME_AS_RLHF, settings_title
from rarlhf_nb.lab.methods import method_name, method_order

SHOWN = 12  # the last note names so many cells that lack methods, and counts the others


def sweep_notes(
    scores: pd.DataFrame, kept: pd.DataFrame, keys: list[str], names: dict[str, str], at_equal_kl: bool
) -> list[str]:
    """The notes on a report of `kept`, the distinct rows of `scores`.

    keys: the settings of the grid besides the seed. names: metric -> its name for readers. at_equal_kl: whether the
    report has a table at equal KL.
    """
    seeds = sorted(kept["seed"].unique())
    brackets = "Brackets hold 95 % t intervals over training seeds" if len(seeds) > 1 else "One seed has no interval"
    return [
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). {brackets}; test prompts are not resampled.",
        "Differences are paired: both methods have the same seed. Nothing is corrected for multiple comparisons, and "
        "the best of many methods owes part of its lead to luck.",
        "A pair is told apart where its interval excludes 0. Otherwise the table says how many seeds a paired "
        "t-test (two-sided, 5 % level) would need to find such a difference with a probability of 80 %, if the mean "
        "and the variance seen were the true ones; with few seeds, both are rough.",
        *_equal_kl(at_equal_kl, names),
        *_renamed(scores),
        *_disagreements(scores, keys, names),
        *_missing(kept, keys),
    ]


def _equal_kl(compared: bool, names: dict[str, str]) -> list[str]:
    """A note on how methods compare at equal KL, or on what the sweep lacks for that."""
    if "kl" not in names:
        return []
    if not compared:
        return [
            "A lead may be bought with KL alone: with several values of ppo.kl_coef in its grid, each with RLHF and "
            "the same other settings, a sweep also compares at equal KL."
        ]
    return [
        "At equal KL: a reward is fitted as a number of the seed, plus a slope times √KL that both methods share, plus "
        "what the method gains over RLHF; a dash where the two have no KL in common."
    ]


def _renamed(scores: pd.DataFrame) -> list[str]:
    """A note on the policies that are RLHF under another name."""
    renamed = [method for method in method_order(scores["method"].unique()) if method in SAME_AS_RLHF]
    if not renamed:
        return []
    listed = " and ".join(map(method_name, renamed))
    return [f"At α = 1 both estimators are RLHF, with the same numbers; the tables leave out {listed}."]


def _disagreements(scores: pd.DataFrame, keys: list[str], names: dict[str, str]) -> list[str]:
    """A note on methods whose repeated rows, of equal settings and seed, are not equal."""
    tail = tail_metric(names)
    repeats = scores.groupby([*keys, "seed", "method"])[tail]
    spread = (repeats.max() - repeats.min()).groupby("method").max()
    methods = method_order(spread.index[spread > 0])
    if not methods:
        return []
    return [
        f"{', '.join(map(method_name, methods))}: runs with the same settings and seed differ, by up to "
        f"{spread.max():.2g} in {names[tail]}; the first is kept."
    ]


def _missing(kept: pd.DataFrame, keys: list[str]) -> list[str]:
    """A note on the cells of the grid that lack methods."""
    methods = method_order(kept["method"].unique())
    found = {cell: set(rows["method"]) for cell, rows in kept.groupby([*keys, "seed"])}
    texts = []
    for *values, seed in product(*(sorted(kept[key].unique()) for key in [*keys, "seed"])):
        absent = [method_name(method) for method in methods if method not in found.get((*values, seed), ())]
        if absent:
            what = "all methods" if len(absent) == len(methods) else ", ".join(absent)
            texts.append(f"{what} with seed {seed} at {settings_title(keys, values)}")
    others = f"; and in {counted(len(texts) - SHOWN, 'other cell')}" if len(texts) > SHOWN else ""
    return [f"Missing: {'; '.join(texts[:SHOWN])}{others}."] if texts else []
