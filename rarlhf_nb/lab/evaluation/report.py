"""What a run found, as one tidy table: every metric of every method, and the paired differences between methods.

A row of `Report.numbers` is one number with its 95 % interval; report.json holds the same rows:

    method   baseline  metric  value    low  high
    rlhf               reward   0.52   0.47  0.57   a method's own number has no baseline
    ra_rlhf  rlhf      reward   0.04  -0.01  0.09   RA-RLHF minus RLHF

So `numbers.pivot(index="method", columns="metric", values="value")` and `px.scatter(numbers, color="method")` work as
they stand. The report of a sweep (`sweep_report`) has the same table with further columns.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.cells import interval_cell, markdown_line, markdown_table, seeds_cell
from rarlhf_nb.lab.evaluation.metrics import (
    Interval,
    Metric,
    Statistic,
    bootstrap_interval,
    bootstrap_weights,
    episode_metrics,
    held_out_metrics,
    pooled_dist,
    prompt_positions,
    sample_metrics,
)
from rarlhf_nb.lab.evaluation.tables import check_episodes, check_paired
from rarlhf_nb.lab.methods import method_name, method_order
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.risk import cvar

ENDS = list(Interval._fields)
COLUMNS = ["method", "baseline", "metric", *ENDS]
BASELINES = ("rlhf", "sft")  # each is compared with every other method
FEW = 10  # the notes name a metric that averages fewer episodes
MAIN_METRICS = ("reward", "tail_reward", "cvar_10", "perplexity", "dist_1", "dist_2", "dist_3", "kl")
Resampled = dict[str, np.ndarray]  # metric -> (1 + R,): the estimate, then its resamples


@dataclass(frozen=True)
class Report:
    """What was found. `tables` and `sections` are for reading: rows of text such as "0.57 [0.51, 0.63]".

    numbers: columns method, baseline ("" for the method's own number), metric, value, low, high.
    names: metric -> its name for readers. notes: what a reader must know about the numbers.
    """

    numbers: pd.DataFrame
    names: dict[str, str]
    notes: list[str]

    def finding(self) -> str:
        """One sentence: which method has the best tail, by how much, and at what KL."""
        return finding(self.numbers, self.names)

    @property
    def own(self) -> pd.DataFrame:
        """The numbers without the differences."""
        return self.numbers[self.numbers["baseline"] == ""]

    def of(self, metric: str, baseline: str = "") -> pd.DataFrame:
        """One metric of every method, or its difference from a baseline: index method; columns value, low, high."""
        rows = self.numbers[(self.numbers["metric"] == metric) & (self.numbers["baseline"] == baseline)]
        return rows.set_index("method")[ENDS]

    def main(self) -> pd.DataFrame:
        """The paper's main table: one row per method, one column per measured metric of `MAIN_METRICS`."""
        metrics = [metric for metric in MAIN_METRICS if metric in self.names]
        table = cell_table(self.own, "method", "metric")
        return table[metrics].rename(index=method_name, columns=self.names)

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables of the first screen, by title."""
        return {"": self.main()}

    def sections(self) -> dict[str, pd.DataFrame]:
        """The tables behind the first screen, by title: every metric, and the differences from each baseline."""
        sections = {}
        for baseline, rows in self.numbers.groupby("baseline", sort=False):
            difference = f"Difference from {method_name(baseline)} (with a * the interval excludes 0)"
            title = difference if baseline else "Every metric"
            cells = cell_table(rows, "metric", "method", star=bool(baseline))
            sections[title] = cells.rename(index=self.names, columns=method_name)
        return sections

    def to_json(self) -> str:
        """{"finding", "numbers": [{"method", "baseline", "metric", "value", "low", "high"}, ...], "names", "notes"}.

        What is not a finite number is null.
        """
        numbers = self.numbers.replace([np.inf], np.nan).astype(object)
        content = {
            "finding": self.finding(),
            "numbers": numbers.where(numbers.notna(), None).to_dict("records"),
            "names": self.names,
            "notes": self.notes,
        }
        return json.dumps(content, indent=1, allow_nan=False)

    def to_markdown(self) -> str:
        """The whole report: `summary`, then `details`."""
        return f"{self.summary()}\n{self.details()}"

    def summary(self) -> str:
        """The first screen as Markdown: the finding, the `tables` and the notes."""
        notes = "\n".join(f"- {markdown_line(note)}" for note in self.notes)
        return f"{markdown_line(self.finding())}\n\n{_markdown(self.tables())}\n\n{notes}\n"

    def details(self) -> str:
        """The `sections` as Markdown, their columns aligned for a terminal."""
        return f"{_markdown(self.sections())}\n"

    _repr_markdown_ = to_markdown  # as notebooks show it


def read_report(run: Run) -> Report:
    """The report of a run, from its report.json. Raises `UserError` if it is damaged or of an earlier version."""
    content = run.read("report.json")
    if "numbers" not in content:
        version = run.manifest["versions"]["rarlhf_nb"]
        raise UserError(f"report.json of run {run.name!r} is of rarlhf_nb {version}: run notebook 05_analysis again.")
    numbers = pd.DataFrame(content["numbers"], columns=COLUMNS).astype(dict.fromkeys(ENDS, float))
    return Report(numbers, content["names"], content["notes"])


def cell_table(rows: pd.DataFrame, index: str, columns: str, star: bool = False) -> pd.DataFrame:
    """Rows of a report for reading: "0.57 [0.51, 0.63]", in the order of the rows; "–" for a number that is missing.

    index, columns: the columns of `rows` that name the rows and columns of the table. star: mark each interval that
    excludes 0.
    """
    cells = interval_cells(rows)
    if star:
        cells = cells.where(~excludes_zero(rows), cells + " *")
    return wide(rows.assign(cell=cells), "cell", index, columns).fillna("–")


def wide(rows: pd.DataFrame, values: str, index: str = "method", columns: str = "metric") -> pd.DataFrame:
    """A column of a report's rows as a table, its rows and columns in the order in which they appear."""
    table = rows.pivot(index=index, columns=columns, values=values)
    table = table.reindex(index=rows[index].unique(), columns=rows[columns].unique())
    return table.rename_axis(index=None, columns=None)


def interval_cells(rows: pd.DataFrame) -> pd.Series:
    """The `interval_cell` of each row of a report."""
    cells = [interval_cell(Interval(*ends)) for ends in rows[ENDS].to_numpy(dtype=float)]
    return pd.Series(cells, rows.index, dtype=object)


def excludes_zero(rows: pd.DataFrame) -> pd.Series:
    """Whether the interval of each row of a report excludes 0."""
    return (rows["low"] > 0) | (rows["high"] < 0)


def _markdown(tables: dict[str, pd.DataFrame]) -> str:
    heads = [f"**{markdown_line(title)}**\n\n" if title else "" for title in tables]
    return "\n\n".join(head + markdown_table(cells) for head, cells in zip(heads, tables.values(), strict=True))


# The finding


def tail_metric(metrics: Iterable[str]) -> str:
    """The metric that ranks the methods: CVaR 10 %, or else CVaR at the smallest level, or else tail reward."""
    levels = [key for key in metrics if key.startswith("cvar_")]
    if "cvar_10" in levels:
        return "cvar_10"
    return min(levels, key=lambda key: float(key.removeprefix("cvar_")), default="tail_reward")


def finding(numbers: pd.DataFrame, names: dict[str, str], source: Literal["run", "sweep"] = "run") -> str:
    """Which method has the best tail, by how much, and at what KL.

    The best method is compared with the first baseline of `numbers`; if it is that baseline, with the runner-up. The
    arguments are the fields of `Report`. If `numbers` has a column seeds_needed, a lead that cannot be told from 0
    comes with the number of seeds that could.
    """
    metric = tail_metric(names)
    what = names[metric].replace(", ", " on ", 1)  # "reward, prompts scored ..." is a column's heading
    rows = numbers[numbers["metric"] == metric].set_index(["method", "baseline"])
    tails = rows.loc[rows.index.get_level_values("baseline") == "", "value"].droplevel("baseline").dropna()
    if tails.empty:
        return f"This {source} says nothing about the tail: its {what} has no value."
    best = tails.idxmax()
    claim = f"its {what} is {interval_cell(Interval(*rows.loc[(best, ''), ENDS]))}"
    if len(tails) == 1:
        return f"Only {method_name(best)} has a measured tail: {claim}."
    baseline = next((name for name in rows.index.unique("baseline") if name in tails), None)
    rival = tails.drop(best).idxmax() if baseline == best else baseline
    sentence = f"{method_name(best)} has the best tail: {claim}"
    if rival is not None:
        sentence += _lead(rows, best, rival, best == baseline, source)
    kl = numbers[(numbers["metric"] == "kl") & (numbers["baseline"] == "")].set_index("method")["value"].dropna()
    if best in kl:
        other = f" ({method_name(rival)}: {kl[rival]:.2f})" if rival in kl else ""
        sentence += f"; its KL from the SFT policy is {kl[best]:.2f} nats{other}"
    return f"{sentence}."


def _lead(rows: pd.DataFrame, best: str, rival: str, runner_up: bool, source: str) -> str:
    """By how much the best method is ahead, and whether the paired interval excludes 0.

    runner_up: whether the rival is compared with the best, which is then the baseline.
    """
    row = rows.loc[(rival, best) if runner_up else (best, rival)]
    ahead = Interval(*(-row[["value", "high", "low"]] if runner_up else row[ENDS]))
    other = f"the runner-up {method_name(rival)}" if runner_up else method_name(rival)
    if ahead.low > 0:
        return f", {interval_cell(ahead)} above {other}"
    needed = row.get("seeds_needed", np.nan)
    could = "" if np.isnan(needed) else f" ({seeds_cell(needed)} could)"
    return f", ahead of {other} by {interval_cell(ahead)}, which this {source} cannot tell from 0{could}"


# The numbers


def build_report(
    episodes: dict[str, pd.DataFrame],
    held_out: dict[str, pd.DataFrame],
    *,
    tail_threshold: float,
    tail_share: float = 0.1,
    cvar_levels: Sequence[float],
    resamples: int,
    seed: int = 0,
    samples: dict[str, pd.DataFrame] | None = None,
    toxicity: bool = False,
) -> Report:
    """Computes every metric of every method with 95 % percentile bootstrap intervals, and paired differences.

    Prompts are resampled (with all their samples), not episodes. All methods share the resamples, which pairs them.
    Perplexity resamples the held-out texts.

    Args:
        episodes: one table per method.
        held_out: likewise; a method without a table has no perplexity.
        tail_threshold: tail prompts score at most this.
        tail_share: the lowest share of prompts.
        cvar_levels: the shares of CVaR.
        samples: tables with many completions per prompt, for Dist-n by prompt and expected maximum toxicity.
        toxicity: whether the reward is civility; without it there is no toxicity.

    Raises:
        UserError: if the methods were not evaluated on the same prompts.
    """
    check_episodes(episodes)
    check_paired(held_out, ["text"])
    check_paired(samples or {}, ["prompt", "seed"])
    methods = method_order(episodes)
    prompt_index = prompt_positions(episodes[methods[0]])
    weights = bootstrap_weights(prompt_index.max() + 1, resamples, np.random.default_rng([seed, 0]))
    metrics = {method: episode_metrics(episodes[method], tail_threshold, tail_share, cvar_levels) for method in methods}
    names: dict[str, str] = {}
    found: dict[str, Resampled] = {}
    for method, own in metrics.items():
        texts = held_out_metrics(held_out.get(method))
        pooled = pooled_dist(episodes[method])
        repeated = sample_metrics((samples or {}).get(method), toxicity)
        names |= {key: metric.name for key, metric in (own | texts | pooled | repeated).items()}
        found[method] = {
            **{key: _over_prompts(metric.statistic, weights, prompt_index) for key, metric in own.items()},
            **_over_rows(texts, resamples, [seed, 1]),
            **_over_rows(pooled, resamples, [seed, 1]),
            **_over_rows(repeated, resamples, [seed, 2]),
        }
    notes = _notes(metrics[methods[0]], len(prompt_index), weights.shape[1], resamples)
    return Report(_numbers(found, names, resamples), names, notes)


def _over_prompts(statistic: Statistic, prompt_weights: np.ndarray, prompt_index: np.ndarray) -> np.ndarray:
    """A statistic of the episodes for each resample of the prompts: (1 + R, P), (N,) -> (1 + R,)."""
    pieces = np.array_split(prompt_weights, 16)  # bounds the memory of the (R, N) temporaries
    return np.concatenate([statistic(piece[:, prompt_index]) for piece in pieces])


def _over_rows(metrics: dict[str, Metric], resamples: int, seed: list[int]) -> Resampled:
    """Metrics that all rest on the same rows (texts, or prompts), for each resample of these rows."""
    if not metrics:
        return {}
    rows = int(next(iter(metrics.values())).rows)
    weights = bootstrap_weights(rows, resamples, np.random.default_rng(seed))
    return {key: metric.statistic(weights) for key, metric in metrics.items()}


def _numbers(found: dict[str, Resampled], names: Iterable[str], resamples: int) -> pd.DataFrame:
    """`Report.numbers`: every method's own numbers, then its differences from each of the `BASELINES`."""
    absent = np.full(1 + resamples, np.nan)
    compared = [(method, baseline) for baseline in BASELINES if baseline in found for method in found]
    rows = []
    for method, baseline in [(method, "") for method in found] + compared:
        for metric in names if method != baseline else ():
            values = found[method].get(metric, absent)
            values = values - found[baseline].get(metric, absent) if baseline else values
            rows.append((method, baseline, metric, *bootstrap_interval(values)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _notes(metrics: dict[str, Metric], episodes: int, prompts: int, resamples: int) -> list[str]:
    few = [
        f"{metric.name} rests on only {metric.rows:.3g} of {episodes} episodes: read it with care."
        if metric.rows
        else f"{metric.name} has no value: there is no such episode."
        for metric in metrics.values()
        if metric.rows < FEW
    ]
    return [
        f"{episodes} episodes of {prompts} prompts per method. Brackets hold 95 % bootstrap intervals from {resamples} "
        "resamples of the prompts (perplexity: of the texts). Intervals are over prompts, not over training seeds.",
        "Differences use the same resamples for both methods; they are not corrected for multiple comparisons.",
        *few,
    ]


def summary(table: pd.DataFrame, tail_threshold: float) -> dict[str, float]:
    """Four numbers of an episodes table: reward, tail reward, CVaR 10 % of reward, and KL in nats per episode.

    Tail reward is the mean over the prompts that score at most `tail_threshold`.
    """
    return {
        "reward": float(table["reward"].mean()),
        "tail reward": float(table.loc[table["prompt_score"] <= tail_threshold, "reward"].mean()),
        "CVaR 10 %": cvar(table["reward"], 0.1),
        "KL": float(table["kl"].mean()),
    }


def summary_table(episodes: dict[str, pd.DataFrame], tail_threshold: float) -> pd.DataFrame:
    """The `summary` of each method, one row per method; `build_report` adds intervals and the other metrics."""
    rows = {method_name(method): summary(episodes[method], tail_threshold) for method in method_order(episodes)}
    return pd.DataFrame.from_dict(rows, orient="index")
