"""The report of a sweep: every method over training seeds, each pair of RL methods, and what the sweep found."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pandas as pd

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.cells import counted, seeds_cell
from rarlhf_nb.lab.evaluation.metrics import seed_interval, seeds_needed
from rarlhf_nb.lab.evaluation.report import (
    COLUMNS,
    Report,
    cell_table,
    excludes_zero,
    finding,
    tail_metric,
)
from rarlhf_nb.lab.evaluation.scores import (
    SAME_AS_RLHF,
    distinct_scores,
    gain_at_equal_kl,
    grid_settings,
    paired_differences,
    settings_title,
)
from rarlhf_nb.lab.methods import RISK_AVERSE, RISK_NEUTRAL, MethodKey, method_name, method_order

BASELINE = "rlhf"
RL_METHODS = (*RISK_NEUTRAL, *RISK_AVERSE)  # with any trained alpha; each pair of them is compared
SHOWN = 12  # the last note names so many runs that lack methods, and counts the others
AT_EQUAL_KL = {  # by whether the sweep compares at equal KL
    True: "At equal KL: a reward is fitted as a number of the seed, plus a slope times √KL that both methods share, "
    "plus what the method gains over RLHF; a dash if the two have no KL in common.",
    False: "A lead may be bought with KL alone: with several values of ppo.kl_coef in its grid, each with RLHF and the "
    "same other settings, a sweep also compares at equal KL.",
}


@dataclass(frozen=True)
class SweepReport(Report):
    """What a sweep found over training seeds.

    numbers: the columns of `Report`, and besides
    - each setting of the grid but seed and alpha, such as kl_coef. Without a kl_coef (NaN) a row is a method's gain
      over RLHF at equal KL (see `gain_at_equal_kl`), which all values of kl_coef give together;
    - runs: how many runs the number rests on, in differences how many pairs of runs with the same seed;
    - seeds_needed: how many would tell the two methods apart, in differences of the tail metric.
    The differences, method minus baseline, are paired by seed: of every method to RLHF, and of every two RL methods.
    """

    def finding(self) -> str:
        """One sentence: which RL method has the best tail at which setting, its lead over RLHF, its KL, the seeds."""
        keys = grid_settings(self.numbers)
        trained = self.numbers[self.numbers["method"].map(is_rl) & self.numbers["kl_coef"].notna()]
        own = trained[(trained["metric"] == tail_metric(self.names)) & (trained["baseline"] == "")]
        if own["value"].isna().all():
            return finding(trained, self.names, "sweep")
        best = own.loc[own["value"].idxmax()]
        sentence = finding(trained[(trained[keys] == best[keys]).all(axis=1)], self.names, "sweep")
        seeds = counted(best["runs"], "seed")
        return f"{sentence.removesuffix('.')}; means over {seeds} at {settings_title(keys, best[keys])}."

    def tables(self) -> dict[str, pd.DataFrame]:
        """By the title of the setting: one row per method, and below them their differences from RLHF."""
        settings = self._by_setting()
        return {title: self._cells(rows[rows["baseline"].isin(["", BASELINE])]) for title, rows in settings.items()}

    def sections(self) -> dict[str, pd.DataFrame]:
        """The tables behind the first screen, by title: differences from RLHF at equal KL, and of other RL methods."""
        found = {}
        for title, rows in self._by_setting(at_equal_kl=True).items():
            found[f"At equal KL, {title}".removesuffix(", ")] = self._cells(rows, "runs")
        for title, rows in self._by_setting().items():
            pairs = rows[~rows["baseline"].isin(["", BASELINE])]
            if len(pairs):
                found[f"Pairs of RL methods, {title}"] = self._cells(pairs)
        return found

    def _by_setting(self, at_equal_kl: bool = False) -> dict[str, pd.DataFrame]:
        """The rows of each setting, by its title."""
        rows, keys = self.numbers[self.numbers["kl_coef"].isna() == at_equal_kl], grid_settings(self.numbers)
        return {settings_title(keys, values): own for values, own in rows.groupby(keys, sort=False, dropna=False)}

    def _cells(self, rows: pd.DataFrame, counts: str = "seeds") -> pd.DataFrame:
        """One row per method or difference: how many runs, every metric, and the seeds that would tell two apart."""
        pair, names = rows["baseline"] != "", rows["method"].map(method_name)
        keys, titles = rows["method"] + "\n" + rows["baseline"], names + " minus " + rows["baseline"].map(method_name)
        rows = rows.assign(key=keys).set_index("key", drop=False)
        table = cell_table(rows, "key", "metric").rename(columns=self.names)
        table.insert(0, counts, rows["runs"].groupby(level=0).max().astype(str))  # a single metric may have fewer
        tails = rows[pair.to_numpy() & (rows["metric"] == tail_metric(self.names))]
        if len(tails) and counts == "seeds":
            needed = tails["seeds_needed"].map(seeds_cell).mask(excludes_zero(tails), "told apart")
            table["needed to tell them apart"] = needed.reindex(table.index, fill_value="")
        return table.rename(index=dict(zip(keys, titles.where(pair, names), strict=True)))


def build_sweep_report(scores: pd.DataFrame) -> SweepReport:
    """Means over seeds with 95 % t intervals, and differences paired by seed, for every setting of the grid.

    scores: one row per trained policy (see `scores`); a value of a metric may be NaN. Raises `UserError` for a table
    without rows or without a metric of the tail.
    """
    if not len(scores):
        raise UserError("scores has no rows: run the sweep first.")
    if not any(column == "tail_reward" or column.startswith("cvar_") for column in scores):
        raise UserError("scores has neither cvar_10 nor tail_reward: evaluate the runs, and write their reports.")
    kept = distinct_scores(scores)
    keys, names = grid_settings(scores), _names(scores.columns)
    rows = [(*values, *row) for values, own in kept.groupby(keys, sort=True) for row in _over_seeds(own, names)]
    gains = _at_equal_kl(kept, keys, names)
    numbers = pd.DataFrame(rows + gains, columns=[*keys, *COLUMNS, "runs", "seeds_needed"])
    return SweepReport(numbers, names, _notes(scores, kept, keys, names, at_equal_kl=bool(gains)))


def is_rl(method: str) -> bool:
    """Whether reinforcement learning trains the method, for any tail share."""
    return MethodKey.parse(method).name in RL_METHODS


def _names(columns: Sequence[str]) -> dict[str, str]:
    """The metrics of the tables and their names, as far as they were measured."""
    tail = tail_metric(columns)
    names = {
        "reward": "reward",
        "tail_reward": "tail reward",
        tail: "tail reward" if tail == "tail_reward" else f"CVaR {tail.removeprefix('cvar_')} %",
        "perplexity": "perplexity",
        "kl": "KL (nats)",
    }
    return {metric: name for metric, name in names.items() if metric in columns}


def _over_seeds(runs: pd.DataFrame, names: dict[str, str]) -> list[tuple]:
    """The rows of `SweepReport.numbers` for one setting of the grid, without the setting.

    The methods' means; every method minus RLHF; and of every two other RL methods, the later minus the earlier.
    """
    methods, tail = method_order(runs["method"].unique()), tail_metric(names)
    compared = [(method, "") for method in methods]
    compared += [(method, BASELINE) for method in methods if method != BASELINE and BASELINE in methods]
    others = [method for method in methods if is_rl(method) and method != BASELINE]
    compared += [(later, earlier) for earlier, later in combinations(others, 2)]
    rows = []
    for method, baseline in compared:
        by_seed = runs[runs["method"] == method]
        if baseline:
            by_seed = paired_differences(runs, list(names), method, baseline)
        for metric in names:
            values = by_seed[metric].dropna()
            needed = seeds_needed(values) if baseline and metric == tail else np.nan
            rows.append((method, baseline, metric, *seed_interval(values), len(values), needed))
    return rows


def _at_equal_kl(kept: pd.DataFrame, keys: list[str], names: dict[str, str]) -> list[tuple]:
    """The rows of `SweepReport.numbers` without a kl_coef: each RL method minus RLHF."""
    others = [key for key in keys if key != "kl_coef"]
    rows = []
    for values, runs in kept.groupby(others) if others else [((), kept)]:
        methods = method_order(runs["method"].unique())
        if "kl" not in runs or runs["kl_coef"].nunique() == 1 or BASELINE not in methods:
            continue
        settings = dict(zip(others, values, strict=True)) | {"kl_coef": np.nan}
        for method, metric in product(methods, [key for key in names if key not in ("perplexity", "kl")]):
            if is_rl(method) and method != BASELINE:
                gain, count = gain_at_equal_kl(runs, metric, method, BASELINE), int((runs["method"] == method).sum())
                rows.append((*map(settings.get, keys), method, BASELINE, metric, *gain, count, np.nan))
    return rows


# The notes


def _notes(
    scores: pd.DataFrame, kept: pd.DataFrame, keys: list[str], names: dict[str, str], at_equal_kl: bool
) -> list[str]:
    """The notes on a report of `kept`, the distinct rows of `scores`.

    keys: the settings of the grid besides the seed. names: metric -> its name for readers. at_equal_kl: whether the
    report has a table at equal KL.
    """
    seeds = sorted(kept["seed"].unique())
    brackets = "Brackets hold 95 % t intervals over training seeds" if len(seeds) > 1 else "One seed has no interval"
    renamed = [method_name(method) for method in SAME_AS_RLHF if method in set(scores["method"])]
    notes = [
        f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). {brackets}; test prompts are not resampled.",
        "Differences are paired: both methods have the same seed. Nothing is corrected for multiple comparisons, and "
        "the best of many methods owes part of its lead to luck.",
        "A pair is told apart if its interval excludes 0. Otherwise the table says how many seeds a paired "
        "t-test (two-sided, 5 % level) would need to find such a difference with a probability of 80 %, if the mean "
        "and the variance seen were the true ones; with few seeds, both are rough.",
        AT_EQUAL_KL[at_equal_kl] if "kl" in names else "",
        f"At α = 1 both estimators are RLHF, with the same numbers; the tables leave out {' and '.join(renamed)}."
        if renamed
        else "",
        _disagreements(scores, keys, names),
        _missing(kept, keys),
    ]
    return [note for note in notes if note]


def _disagreements(scores: pd.DataFrame, keys: list[str], names: dict[str, str]) -> str:
    """Methods whose repeated rows, of equal settings and seed, are not equal."""
    tail = tail_metric(names)
    repeats = scores.groupby([*keys, "seed", "method"])[tail]
    spread = (repeats.max() - repeats.min()).groupby("method").max()
    methods = ", ".join(map(method_name, method_order(spread.index[spread > 0])))
    differ = f"runs with the same settings and seed differ, by up to {spread.max():.2g} in {names[tail]}"
    return f"{methods}: {differ}; the first is kept." if methods else ""


def _missing(kept: pd.DataFrame, keys: list[str]) -> str:
    """The runs of the grid that lack methods."""
    methods = method_order(kept["method"].unique())
    found = {cell: set(rows["method"]) for cell, rows in kept.groupby([*keys, "seed"])}
    texts = []
    for *values, seed in product(*(sorted(kept[key].unique()) for key in [*keys, "seed"])):
        absent = [method_name(method) for method in methods if method not in found.get((*values, seed), ())]
        if absent:
            what = "all methods" if len(absent) == len(methods) else ", ".join(absent)
            texts.append(f"{what} with seed {seed} at {settings_title(keys, values)}")
    others = f"; and in {counted(len(texts) - SHOWN, 'other cell')}" if len(texts) > SHOWN else ""
    return f"Missing: {'; '.join(texts[:SHOWN])}{others}." if texts else ""
