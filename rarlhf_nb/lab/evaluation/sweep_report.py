"""The report of a sweep: every method over training seeds, each pair of RL methods, and what the sweep found."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

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
    interval_cells,
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
SHOWN = 12  # the last note names so many cells that lack methods, and counts the others


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
        """By the title of the setting: one row per method, its metrics and its differences from RLHF."""
        return {title: self._methods(rows) for title, rows in self._by_setting().items()}

    def comparisons(self) -> dict[str, pd.DataFrame]:
        """By the title of the setting: one row per pair of RL methods."""
        return {title: self._pairs(rows) for title, rows in self._by_setting().items()}

    def at_equal_kl(self) -> dict[str, pd.DataFrame]:
        """By the title of the setting without kl_coef: one row per RL method but RLHF."""
        found = {}
        for title, rows in self._by_setting(at_equal_kl=True).items():
            gains = cell_table(rows, "method", "metric").rename(columns=self._minus_baseline)
            found[title] = pd.concat([_counts(rows, "runs"), gains], axis=1).rename(index=method_name)
        return found

    def sections(self) -> dict[str, pd.DataFrame]:
        """The tables behind the first screen, by title: `at_equal_kl` and the `comparisons`."""
        tables = {f"At equal KL, {title}".removesuffix(", "): cells for title, cells in self.at_equal_kl().items()}
        pairs = {f"Pairs of RL methods, {title}": cells for title, cells in self.comparisons().items() if len(cells)}
        return tables | pairs

    def _by_setting(self, at_equal_kl: bool = False) -> dict[str, pd.DataFrame]:
        """The rows of each setting, by its title."""
        rows, keys = self.numbers[self.numbers["kl_coef"].isna() == at_equal_kl], grid_settings(self.numbers)
        return {settings_title(keys, values): own for values, own in rows.groupby(keys, sort=False, dropna=False)}

    def _methods(self, rows: pd.DataFrame) -> pd.DataFrame:
        own, pairs = rows[rows["baseline"] == ""], rows[rows["baseline"] == BASELINE]
        tails = [metric for metric in dict.fromkeys([tail_metric(self.names), "tail_reward"]) if metric in self.names]
        table = cell_table(own, "method", "metric")
        gains = cell_table(pairs, "method", "metric").reindex(index=table.index, columns=tails, fill_value="–")
        columns = [_counts(own, "seeds"), table.rename(columns=self.names), gains.rename(columns=self._minus_baseline)]
        return pd.concat(columns, axis=1).rename(index=method_name)

    def _minus_baseline(self, metric: str) -> str:
        return f"{self.names[metric]}: − {method_name(BASELINE)}"

    def _pairs(self, rows: pd.DataFrame) -> pd.DataFrame:
        tail = tail_metric(self.names)
        rows = rows[(rows["metric"] == tail) & rows["method"].map(is_rl) & rows["baseline"].map(is_rl)]
        needed = rows["seeds_needed"].map(seeds_cell).mask(excludes_zero(rows), "told apart")
        columns = {
            "seeds": rows["runs"].astype(str),
            self.names[tail]: interval_cells(rows),
            "needed to tell them apart": needed,
        }
        pairs = rows["method"].map(method_name) + " − " + rows["baseline"].map(method_name)
        return pd.DataFrame(columns).set_axis(pairs)


def _counts(rows: pd.DataFrame, name: str) -> pd.Series:
    """How many runs of each method there are, as text; a single metric may have fewer."""
    return rows.groupby("method", sort=False)["runs"].max().astype(str).rename(name).rename_axis(None)


def build_sweep_report(scores: pd.DataFrame) -> SweepReport:
    """Means over seeds with 95 % t intervals, and differences paired by seed, for every setting of the grid.

    scores: one row per trained policy (see `scores`); a value of a metric may be NaN. Raises `UserError` for a table
    without rows, without one of the needed columns, or with a setting that has no value.
    """
    _check(scores)
    kept = distinct_scores(scores)
    keys, names = grid_settings(scores), _names(scores.columns)
    rows = []
    for values, own in kept.groupby(keys, sort=True):
        settings = dict(zip(keys, values, strict=True))
        rows += [settings | row for row in [*_means(own, names), *_differences(own, names)]]
    gains = _gains_at_equal_kl(kept, [key for key in keys if key != "kl_coef"], names)
    columns = [*keys, *COLUMNS, "runs", "seeds_needed"]
    notes = _notes(scores, kept, keys, names, at_equal_kl=bool(gains))
    return SweepReport(pd.DataFrame(rows + gains, columns=columns), names, notes)


def is_rl(method: str) -> bool:
    """Whether reinforcement learning trains the method, for any tail share."""
    return MethodKey.parse(method).name in RL_METHODS


def _check(scores: pd.DataFrame) -> None:
    if not len(scores):
        raise UserError("scores has no rows: run the sweep first.")
    for column in ("seed", "method", "kl_coef"):
        if column not in scores:
            raise UserError(f"scores lacks the column {column}: it needs one row per run and method.")
    if not any(column == "tail_reward" or column.startswith("cvar_") for column in scores):
        raise UserError("scores has neither cvar_10 nor tail_reward: evaluate the runs, and write their reports.")
    for column in grid_settings(scores):
        if scores[column].isna().any():
            row = scores.index[scores[column].isna()][0]
            raise UserError(f"scores has no {column} in row {row}: every run of a sweep has a value of each setting.")


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


def _means(rows: pd.DataFrame, names: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of `SweepReport.numbers` without a baseline, for one setting of the grid."""
    return [
        _number(method, "", metric, own[metric])
        for method in method_order(rows["method"].unique())
        for own in [rows[rows["method"] == method]]
        for metric in names
    ]


def _differences(rows: pd.DataFrame, names: dict[str, str]) -> list[dict[str, Any]]:
    """Every method minus RLHF, then every two other RL methods, the later of two minus the earlier."""
    methods, tail = method_order(rows["method"].unique()), tail_metric(names)
    compared = [(method, BASELINE) for method in methods if method != BASELINE and BASELINE in methods]
    others = [method for method in methods if is_rl(method) and method != BASELINE]
    compared += [(later, earlier) for earlier, later in combinations(others, 2)]
    found = []
    for method, baseline in compared:
        differences = paired_differences(rows, list(names), method, baseline)
        needed = {tail: {"seeds_needed": seeds_needed(differences[tail].dropna())}}
        found += [_number(method, baseline, key, differences[key]) | needed.get(key, {}) for key in names]
    return found


def _number(method: str, baseline: str, metric: str, values: pd.Series) -> dict[str, Any]:
    """The mean of one value per seed, with its interval."""
    values = values.dropna()
    row = {"method": method, "baseline": baseline, "metric": metric, "runs": len(values)}
    return row | seed_interval(values)._asdict()


def _gains_at_equal_kl(kept: pd.DataFrame, others: list[str], names: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of `SweepReport.numbers` without a kl_coef. others: the settings of the grid besides it."""
    rewards = [metric for metric in names if metric not in ("perplexity", "kl")]
    found = []
    for values, rows in kept.groupby(others) if others else [((), kept)]:
        methods = method_order(rows["method"].unique())
        if "kl" not in rows or rows["kl_coef"].nunique() == 1 or BASELINE not in methods:
            continue
        settings = dict(zip(others, values, strict=True))
        for method in methods:
            runs = int((rows["method"] == method).sum())
            for metric in rewards if is_rl(method) and method != BASELINE else ():
                gain = gain_at_equal_kl(rows, metric, method, BASELINE)._asdict()
                row = {"method": method, "baseline": BASELINE, "metric": metric, "runs": runs}
                found.append(settings | row | gain)
    return found


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
