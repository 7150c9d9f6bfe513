"""The report of a sweep: every method over training seeds, each pair of RL methods, and what the sweep found."""

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.cells import (
    ENDS,
    counted,
    excludes_zero,
    interval_cell,
    interval_numbers,
    markdown_line,
    markdown_table,
    read_interval,
    seeds_cell,
)
from rarlhf_nb.lab.evaluation.equal_kl import gain_at_equal_kl
from rarlhf_nb.lab.evaluation.finding import finding, tail_metric
from rarlhf_nb.lab.evaluation.metrics import Interval, seed_interval, seeds_needed
from rarlhf_nb.lab.evaluation.sweep_notes import sweep_notes
from rarlhf_nb.lab.evaluation.sweeps import distinct_scores, grid_settings, paired_differences, settings_title
from rarlhf_nb.lab.methods import RISK_AVERSE, RISK_NEUTRAL, MethodKey, method_name, method_order

BASELINE = "rlhf"
RL_METHODS = (*RISK_NEUTRAL, *RISK_AVERSE)  # with any trained alpha; each pair of them is compared


@dataclass(frozen=True)
class SweepReport:
    """What a sweep found over training seeds.

    settings: for each setting of the grid besides seed and alpha, its title ("kl_coef 0.2") and its values.
    table: index (settings, method), settings being a title; the column seeds, and for each metric `<metric>`,
    `<metric>_low`, `<metric>_high`.
    differences: likewise, index (settings, method, baseline): method minus baseline, paired by seed, of every method
    to RLHF and of every two RL methods; the column seeds_needed is of the tail metric.
    equal_kl: index (settings, method): each RL method minus RLHF at equal KL (see `measuring.equal_kl`), over all
    kl_coefs, which the titles of these settings leave out; the column runs. Empty where there is only one kl_coef.
    names: metric -> its name for readers. notes: what a reader must know about the numbers.
    """

    settings: dict[str, dict[str, Any]]
    table: pd.DataFrame
    differences: pd.DataFrame
    equal_kl: pd.DataFrame
    names: dict[str, str]
    notes: list[str]

    def finding(self) -> str:
        """One sentence: which RL method has the best tail at which setting, its lead over RLHF, its KL, the seeds."""
        trained = self.table.loc[[is_rl(method) for method in self.table.index.get_level_values("method")]]
        tails = trained[tail_metric(self.names)].dropna()
        title, best = tails.idxmax() if len(tails) else (next(iter(self.settings)), None)
        rows, pairs = _of_setting(trained, title), _of_setting(self.differences, title)
        pairs = pairs.loc[[is_rl(method) for method in pairs.index.get_level_values("method")]]
        sentence = finding(rows, pairs, self.names, "sweep")
        if best is None:
            return sentence
        return f"{sentence.removesuffix('.')}; means over {counted(rows.loc[best, 'seeds'], 'seed')} at {title}."

    def tables(self) -> dict[str, pd.DataFrame]:
        """For reading, by the title of the setting: one row per method, its metrics and its differences from RLHF."""
        return {title: self._methods(title) for title in self.settings}

    def comparisons(self) -> dict[str, pd.DataFrame]:
        """For reading, by the title of the setting: one row per pair of RL methods."""
        return {title: self._pairs(title) for title in self.settings}

    def at_equal_kl(self) -> dict[str, pd.DataFrame]:
        """For reading, by the title of the setting without kl_coef: one row per RL method but RLHF."""
        found = {}
        for title, rows in self.equal_kl.groupby(level="settings", sort=False):
            columns = {"runs": rows["runs"].astype(str).tolist()}
            columns |= {
                f"{self.names[metric]}: − {method_name(BASELINE)}": _cells(rows, metric)
                for metric in _rewards(self.names)
            }
            found[title] = pd.DataFrame(columns, index=[method_name(method) for _, method in rows.index])
        return found

    def _methods(self, title: str) -> pd.DataFrame:
        rows = _of_setting(self.table, title)
        to_baseline = pd.MultiIndex.from_product([rows.index, [BASELINE]])
        differences = _of_setting(self.differences, title).reindex(to_baseline)
        columns = {"seeds": rows["seeds"].astype(str).tolist()}
        columns |= {name: _cells(rows, metric) for metric, name in self.names.items()}
        for metric in dict.fromkeys([tail_metric(self.names), "tail_reward"]):
            if metric in self.names:
                columns[f"{self.names[metric]}: − {method_name(BASELINE)}"] = _cells(differences, metric)
        return pd.DataFrame(columns, index=[method_name(method) for method in rows.index])

    def _pairs(self, title: str) -> pd.DataFrame:
        rows, metric = _of_setting(self.differences, title), tail_metric(self.names)
        rows = rows.loc[[is_rl(method) and is_rl(baseline) for method, baseline in rows.index]]
        needed = [
            "told apart" if apart else seeds_cell(seeds)
            for apart, seeds in zip(excludes_zero(rows, metric), rows["seeds_needed"], strict=True)
        ]
        columns = {"seeds": rows["seeds"].astype(str).tolist(), self.names[metric]: _cells(rows, metric)}
        pairs = [f"{method_name(method)} − {method_name(baseline)}" for method, baseline in rows.index]
        return pd.DataFrame(columns | {"needed to tell them apart": needed}, index=pairs)

    def to_json(self) -> str:
        """{"finding", "settings": [{"settings", "methods", "differences"}], "equal_kl", ...}, null for NaN and inf."""
        return json.dumps(
            {
                "finding": self.finding(),
                "settings": [{"settings": values} | self._numbers(title) for title, values in self.settings.items()],
                "equal_kl": self._equal_kl_numbers(),
                "names": self.names,
                "notes": self.notes,
            },
            indent=1,
            allow_nan=False,
        )

    def _numbers(self, title: str) -> dict[str, Any]:
        rows, pairs = _of_setting(self.table, title), _of_setting(self.differences, title)
        apart = excludes_zero(pairs, tail_metric(self.names))
        return {
            "methods": {
                method: {"seeds": int(row["seeds"])} | interval_numbers(row, self.names)
                for method, row in rows.iterrows()
            },
            "differences": [
                {
                    "method": method,
                    "baseline": baseline,
                    "seeds": int(row["seeds"]),
                    "told_apart": bool(clear),
                    "seeds_needed": int(row["seeds_needed"]) if np.isfinite(row["seeds_needed"]) else None,
                }
                | interval_numbers(row, self.names)
                for ((method, baseline), row), clear in zip(pairs.iterrows(), apart, strict=True)
            ],
        }

    def _equal_kl_numbers(self) -> list[dict[str, Any]]:
        others = [{key: value for key, value in own.items() if key != "kl_coef"} for own in self.settings.values()]
        settings = {settings_title(own, own.values()): own for own in others}
        return [
            {"settings": settings[title], "method": method, "baseline": BASELINE, "runs": int(row["runs"])}
            | interval_numbers(row, _rewards(self.names))
            for (title, method), row in self.equal_kl.iterrows()
        ]

    def to_markdown(self) -> str:
        """The whole report: `summary`, then `at_equal_kl` and the `comparisons`."""
        return f"{self.summary()}\n{_markdown(self._further_tables())}\n"

    def summary(self) -> str:
        """The first screen as Markdown: the finding, the `tables` and the notes."""
        notes = "\n".join(f"- {markdown_line(note)}" for note in self.notes)
        return f"{markdown_line(self.finding())}\n\n{_markdown(self.tables())}\n\n{notes}\n"

    def to_html(self) -> str:
        """The whole report for notebooks; every text escaped."""
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        sections = [
            "".join(f"<h4>{html.escape(title)}</h4>{cells.to_html()}" for title, cells in tables.items())
            for tables in (self.tables(), self._further_tables())
        ]
        return f"<p>{html.escape(self.finding())}</p>{sections[0]}<ul>{notes}</ul>{sections[1]}"

    _repr_html_ = to_html

    def _further_tables(self) -> dict[str, pd.DataFrame]:
        tables = {f"At equal KL, {title}".removesuffix(", "): cells for title, cells in self.at_equal_kl().items()}
        pairs = {f"Pairs of RL methods, {title}": cells for title, cells in self.comparisons().items() if len(cells)}
        return tables | pairs


def build_sweep_report(scores: pd.DataFrame) -> SweepReport:
    """Means over seeds with 95 % t intervals, and differences paired by seed, for every setting of the grid.

    scores: one row per trained policy (see `measuring.sweeps`); a value of a metric may be NaN. Raises `UserError` for
    a table without rows, without one of the needed columns, or with a setting that has no value.
    """
    _check(scores)
    kept = distinct_scores(scores)
    keys, names = grid_settings(scores), _names(scores.columns)
    settings, means, differences, equal_kl = {}, {}, {}, _at_equal_kl(kept, keys, names)
    for values, rows in kept.groupby(keys, sort=True):
        title = settings_title(keys, values)
        settings[title] = {key: _plain(value) for key, value in zip(keys, values, strict=True)}
        methods = method_order(rows["method"].unique())
        for method in methods:
            own = rows[rows["method"] == method]
            means[title, method] = {"seeds": len(own)} | _intervals({key: own[key].dropna() for key in names})
        for pair in _compared(methods):
            differences[title, *pair] = _difference(rows, *pair, names)
    return SweepReport(
        settings,
        _table(means, ["settings", "method"], ["seeds", *_columns(names)]),
        _table(differences, ["settings", "method", "baseline"], ["seeds", "seeds_needed", *_columns(names)]),
        _table(equal_kl, ["settings", "method"], ["runs", *_columns(_rewards(names))]),
        names,
        sweep_notes(scores, kept, keys, names, at_equal_kl=bool(equal_kl)),
    )


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


def _rewards(names: dict[str, str]) -> list[str]:
    """The metrics that are compared at equal KL: means of rewards."""
    return [metric for metric in names if metric not in ("perplexity", "kl")]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _compared(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Every method with RLHF, then every two other RL methods; the later of two minus the earlier."""
    with_baseline = [(method, BASELINE) for method in methods if method != BASELINE and BASELINE in methods]
    others = [method for method in methods if is_rl(method) and method != BASELINE]
    return with_baseline + [(later, earlier) for earlier, later in combinations(others, 2)]


def _difference(rows: pd.DataFrame, method: str, baseline: str, names: dict[str, str]) -> dict[str, float]:
    """A row of `SweepReport.differences`."""
    differences = paired_differences(rows, list(names), method, baseline)
    by_metric = {metric: differences[metric].dropna() for metric in names}
    tail = by_metric[tail_metric(names)]
    return {"seeds": len(tail), "seeds_needed": seeds_needed(tail)} | _intervals(by_metric)


def _at_equal_kl(kept: pd.DataFrame, keys: list[str], names: dict[str, str]) -> dict[tuple, dict[str, float]]:
    """The rows of `SweepReport.equal_kl`."""
    others = [key for key in keys if key != "kl_coef"]
    found = {}
    for values, rows in kept.groupby(others) if others else [((), kept)]:
        methods = method_order(rows["method"].unique())
        if "kl" not in rows or rows["kl_coef"].nunique() == 1 or BASELINE not in methods:
            continue
        for method in methods:
            if is_rl(method) and method != BASELINE:
                gains = {metric: gain_at_equal_kl(rows, metric, method, BASELINE) for metric in _rewards(names)}
                runs = {"runs": int((rows["method"] == method).sum())}
                found[settings_title(others, values), method] = runs | _flat(gains)
    return found


def _intervals(values: dict[str, ArrayLike]) -> dict[str, float]:
    """The mean of every metric over the seeds, with its interval. values: metric -> (S,)."""
    return _flat({metric: seed_interval(found) for metric, found in values.items()})


def _flat(intervals: dict[str, Interval]) -> dict[str, float]:
    """The columns of every metric: its value and both ends of its interval."""
    return {metric + end: x for metric, xs in intervals.items() for end, x in zip(ENDS, xs, strict=True)}


def _columns(metrics: Iterable[str]) -> list[str]:
    return [metric + end for metric in metrics for end in ENDS]


def _table(rows: dict[tuple, dict], index: list[str], columns: list[str]) -> pd.DataFrame:
    keys = pd.MultiIndex.from_frame(pd.DataFrame(list(rows), columns=index))
    return pd.DataFrame(list(rows.values()), index=keys, columns=columns)


def _of_setting(table: pd.DataFrame, title: str) -> pd.DataFrame:
    """The rows of one setting, without its level of the index."""
    return table[table.index.get_level_values("settings") == title].droplevel("settings")


def _cells(rows: pd.DataFrame, metric: str) -> list[str]:
    return [interval_cell(read_interval(row, metric)) for _, row in rows.iterrows()]


def _markdown(tables: dict[str, pd.DataFrame]) -> str:
    return "\n\n".join(f"**{markdown_line(title)}**\n\n{markdown_table(cells)}" for title, cells in tables.items())
