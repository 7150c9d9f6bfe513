"""The report of a run: every metric of every method, and the paired differences between methods."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rarlhf_nb.lab.evaluation.cells import (
    ENDS,
    excludes_zero,
    interval_cell,
    interval_numbers,
    markdown_line,
    markdown_table,
    read_interval,
)
from rarlhf_nb.lab.evaluation.finding import finding
from rarlhf_nb.lab.evaluation.metrics import Interval, bootstrap_interval, bootstrap_weights, perplexity
from rarlhf_nb.lab.evaluation.report_metrics import (
    Metric,
    Statistic,
    episode_metrics,
    pooled_dist,
    prompt_positions,
    sample_metrics,
)
from rarlhf_nb.lab.evaluation.tables import check_episodes, check_paired
from rarlhf_nb.lab.methods import method_name, method_order
from rarlhf_nb.risk import cvar

BASELINES = ("rlhf", "sft")  # each is compared with every other method
FEW = 10  # the notes name a metric that averages fewer episodes
MAIN_METRICS = ("reward", "tail_reward", "cvar_10", "perplexity", "dist_1", "dist_2", "dist_3", "kl")
Named = dict[str, tuple[str, np.ndarray]]  # metric -> its name, and (1 + R,) the estimate and its resamples


@dataclass(frozen=True)
class Report:
    """What a run found.

    table: index method; for each metric the columns `<metric>`, `<metric>_low`, `<metric>_high`.
    differences: the same columns, index (method, baseline): method minus baseline on the same resamples.
    names: metric -> its name for readers. notes: what a reader must know about the numbers.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    names: dict[str, str]
    notes: list[str]

    def finding(self) -> str:
        """One sentence: which method has the best tail, by how much, and at what KL."""
        return finding(self.table, self.differences, self.names)

    def cells(self, numbers: pd.DataFrame) -> pd.DataFrame:
        """Numbers for reading: one row per metric, one column per method, "0.57 [0.51, 0.63]"."""
        columns = {
            index: [interval_cell(read_interval(row, metric)) for metric in self.names]
            for index, row in numbers.iterrows()
        }
        return pd.DataFrame(columns, index=list(self.names.values()), dtype=object)

    def main(self) -> pd.DataFrame:
        """The paper's main table, for reading: one row per method, one column per measured metric of `MAIN_METRICS`."""
        names = {key: self.names[key] for key in MAIN_METRICS if key in self.names}
        return self.cells(self.table).loc[list(names.values())].T.rename(index=method_name)

    def sections(self) -> dict[str, pd.DataFrame]:
        """The tables behind the main one, by title: all `cells`, and the differences from each baseline."""
        sections = {"Every metric": self.cells(self.table).rename(columns=method_name)}
        for baseline, rows in self.differences.groupby(level="baseline", sort=False):
            cells = self.cells(rows.droplevel("baseline")).rename(columns=method_name)
            clear = np.stack([excludes_zero(rows, metric) for metric in self.names])
            title = f"Difference from {method_name(baseline)} (* the interval excludes 0)"
            sections[title] = cells.where(~clear, cells + " *")
        return sections

    def to_json(self) -> str:
        """{"methods": {method: {metric: {value, low, high}}}, "differences": [...], ...}, with null for NaN."""
        return json.dumps(
            {
                "methods": {method: interval_numbers(row, self.names) for method, row in self.table.iterrows()},
                "differences": [
                    {"method": method, "baseline": baseline} | interval_numbers(row, self.names)
                    for (method, baseline), row in self.differences.iterrows()
                ],
                "names": self.names,
                "notes": self.notes,
            },
            indent=1,
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` wrote."""
        content = json.loads(text)
        names = content["names"]
        table = {(method,): numbers for method, numbers in content["methods"].items()}
        differences = {(row["method"], row["baseline"]): row for row in content["differences"]}
        return cls(
            _columns(table, ["method"], names),
            _columns(differences, ["method", "baseline"], names),
            names,
            content["notes"],
        )

    def to_markdown(self) -> str:
        """The whole report: `summary`, then `details`."""
        return f"{self.summary()}\n{self.details()}"

    def summary(self) -> str:
        """The first screen as Markdown: the finding, the main table and the notes."""
        notes = "\n".join(f"- {markdown_line(note)}" for note in self.notes)
        return f"{markdown_line(self.finding())}\n\n{markdown_table(self.main())}\n\n{notes}\n"

    def details(self) -> str:
        """The `sections` as Markdown, their columns aligned for a terminal."""
        return "\n\n".join(f"**{title}**\n\n{markdown_table(cells)}" for title, cells in self.sections().items()) + "\n"

    def to_html(self) -> str:
        """The whole report for notebooks; every text escaped."""
        tables = [f"<h4>{html.escape(title)}</h4>{cells.to_html()}" for title, cells in self.sections().items()]
        return "\n".join([f"<p>{html.escape(self.finding())}</p>", self.main().to_html(), self.notes_html(), *tables])

    def notes_html(self) -> str:
        """The notes as a list, escaped."""
        return f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in self.notes)}</ul>"

    _repr_html_ = to_html


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
    prompt_weights = bootstrap_weights(prompt_index.max() + 1, resamples, np.random.default_rng([seed, 0]))
    metrics = {method: episode_metrics(episodes[method], tail_threshold, tail_share, cvar_levels) for method in methods}
    found: dict[str, Named] = {
        method: {
            key: (metric.name, _resampled(metric.statistic, prompt_weights, prompt_index))
            for key, metric in own.items()
        }
        | _perplexity(held_out.get(method), resamples, seed)
        | {
            key: (name, _without_interval(value, resamples))
            for key, (name, value) in pooled_dist(episodes[method]).items()
        }
        | _of_samples((samples or {}).get(method), toxicity, resamples, seed)
        for method, own in metrics.items()
    }
    names = {key: name for own in found.values() for key, (name, _) in own.items()}
    absent = "", np.full(1 + resamples, np.nan)
    statistics = {method: {key: own.get(key, absent)[1] for key in names} for method, own in found.items()}
    return Report(
        table=_table(statistics, "method"),
        differences=_table(_paired_differences(statistics), ["method", "baseline"]),
        names=names,
        notes=_notes(metrics[methods[0]], len(prompt_index), prompt_weights.shape[1], resamples),
    )


def _of_samples(table: pd.DataFrame | None, toxicity: bool, resamples: int, seed: int) -> Named:
    """Metrics of many samples per prompt, resampled over the prompts."""
    if table is None:
        return {}
    metrics = sample_metrics(table, toxicity)
    prompts = int(next(iter(metrics.values())).rows)
    weights = bootstrap_weights(prompts, resamples, np.random.default_rng([seed, 2]))
    return {key: (metric.name, metric.statistic(weights)) for key, metric in metrics.items()}


def _without_interval(value: float, resamples: int) -> np.ndarray:
    return np.concatenate([[value], np.full(resamples, np.nan)])


def _perplexity(held_out: pd.DataFrame | None, resamples: int, seed: int) -> Named:
    """Perplexity, resampled over the held-out texts."""
    if held_out is None:
        return {}
    weights = bootstrap_weights(len(held_out), resamples, np.random.default_rng([seed, 1]))
    values = perplexity(held_out["log_likelihood"].to_numpy(), held_out["tokens"].to_numpy(), weights)
    return {"perplexity": ("perplexity, held-out texts (lower is better)", values)}


def _resampled(statistic: Statistic, prompt_weights: np.ndarray, prompt_index: np.ndarray) -> np.ndarray:
    """A statistic of the episodes for each resample of the prompts: (1 + R, P), (N,) -> (1 + R,)."""
    pieces = np.array_split(prompt_weights, 16)  # bounds the memory of the (R, N) temporaries
    return np.concatenate([statistic(piece[:, prompt_index]) for piece in pieces])


def _paired_differences(
    statistics: dict[str, dict[str, np.ndarray]],
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    return {
        (method, baseline): {key: values - statistics[baseline][key] for key, values in statistics[method].items()}
        for baseline in BASELINES
        if baseline in statistics
        for method in statistics
        if method != baseline
    }


def _table(statistics: dict[Any, dict[str, np.ndarray]], index: str | list[str]) -> pd.DataFrame:
    """One row per key of `statistics`, with the estimate of each metric and both ends of its interval."""
    rows = []
    for found in statistics.values():
        intervals = {key: bootstrap_interval(values) for key, values in found.items()}
        rows.append({key + end: x for key, xs in intervals.items() for end, x in zip(ENDS, xs, strict=True)})
    names = [index] if isinstance(index, str) else index
    keys = pd.DataFrame(list(statistics), columns=names)
    return pd.concat([keys, pd.DataFrame(rows)], axis=1).set_index(index)


def _columns(numbers: dict[tuple[str, ...], dict], index: list[str], names: dict[str, str]) -> pd.DataFrame:
    """The table of `_table` from numbers as `Report.to_json` writes them."""
    rows = [
        dict(zip(index, key, strict=True))
        | {
            metric + end: own[metric][name]
            for metric in names
            for end, name in zip(ENDS, Interval._fields, strict=True)
        }
        for key, own in numbers.items()
    ]
    columns = [*index, *(metric + end for metric in names for end in ENDS)]
    return pd.DataFrame(rows, columns=columns).set_index(index).astype(float)


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
