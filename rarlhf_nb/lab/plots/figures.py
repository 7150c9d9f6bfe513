"""The figures: each function takes tables and returns a plotly figure. Texts from data are escaped."""

import html
import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rarlhf_nb.lab.evaluation.cells import ENDS, counted
from rarlhf_nb.lab.evaluation.metrics import bootstrap_weights, seed_interval, tail_mean
from rarlhf_nb.lab.evaluation.report import Report
from rarlhf_nb.lab.evaluation.report_metrics import prompt_positions
from rarlhf_nb.lab.methods import OTHER_COLOR, method_order
from rarlhf_nb.lab.plots.theme import (
    CLUSTER_COLORS,
    CLUSTER_SYMBOLS,
    LABELS,
    REWARD,
    faint,
    label_text,
    laid_out,
    line_style,
    method_color,
)
from rarlhf_nb.risk import SoftRiskSchedule

TRAINING_PANELS = {
    "env_reward_mean": "environment reward (logit)",
    "return_mean": "return (logit)",
    "tail_return_mean": "return of kept episodes (logit)",
    "env_reward_std": "std of environment reward (logit)",
    "kl": "KL from the SFT policy (nats per completion)",
    "kl_coef": "kl_coef β (logit per nat)",
    "kept": "kept episodes (count)",
    "completion_length": "completion length (tokens)",
}
EXACT = ("kl_coef", "kept")  # set, not measured, so there is nothing to smooth
FROM_ZERO = (*EXACT, "completion_length")  # often constant, so that an automatic range would be arbitrary
NAMED = {"showlegend": False, "margin_l": 160, "margin_t": 90}  # for figures whose y axis names the methods


def prompt_score_histogram(
    test: pd.DataFrame, tail_threshold: float | None = None, positive_label: int = 1
) -> go.Figure:
    """The scores of the test prompts by class label, one panel per group of prompts.

    test: columns prompt_score, label, group. The dashed line is `tail_threshold`; tail prompts lie to its left.
    positive_label: that of the texts that are wanted.
    """
    groups = test["group"].value_counts().index.tolist()
    titles = [_group_title(group, int((test["group"] == group).sum())) for group in groups]
    figure = make_subplots(rows=len(groups), shared_xaxes=True, vertical_spacing=0.1, subplot_titles=titles)
    edges = _bin_edges(test["prompt_score"])
    for row, group in enumerate(groups, start=1):
        own = test[test["group"] == group]
        _add_histogram(figure, own, "prompt_score", edges, row, positive_label, upright=True)
    if tail_threshold is not None:
        figure.add_vline(x=tail_threshold, line={"dash": "dash", "color": "#222222"})
    figure.update_yaxes(title_text="prompts (count)")
    figure.update_xaxes(title_text="prompt score (logit)", row=len(groups))
    figure.update_annotations(x=0, xanchor="left")
    dashed = "" if tail_threshold is None else f"; dashed: tail threshold {tail_threshold:g}"
    return laid_out(figure, f"Scores of the test prompts{dashed}", 170 + 230 * len(groups), barmode="stack")


def distribution_shift(test: pd.DataFrame, episodes: dict[str, pd.DataFrame], positive_label: int = 1) -> go.Figure:
    """How each method shifts the distribution: one column per method, after one for the prompts' own scores.

    Counts go to the right and logits upwards, on one shared axis, by class label of the prompt's text; the line is the
    mean. test: columns prompt_score, label. positive_label: that of the texts that are wanted.
    """
    methods = method_order(episodes)
    columns = [("Prompts", OTHER_COLOR, test.assign(reward=test["prompt_score"]))]
    columns += [(label_text(method), method_color(method), episodes[method]) for method in methods]
    edges = _bin_edges(pd.concat([table["reward"] for _, _, table in columns]))
    titles = [
        f"{name.replace(' (', '<br>(').replace(' α', '<br>α')}<br>{table['reward'].mean():.2f}"
        for name, _, table in columns
    ]
    figure = make_subplots(cols=len(columns), shared_yaxes=True, horizontal_spacing=0.008, subplot_titles=titles)
    for col, (_, color, table) in enumerate(columns, start=1):
        _add_histogram(figure, table, "reward", edges, col, positive_label)
        # one round count per axis, since the tick labels of neighbours would overlap
        most = np.histogram(table["reward"], edges)[0].max()
        figure.update_xaxes(tickvals=[float(f"{0.75 * most:.0e}")], row=1, col=col)
        figure.add_hline(y=table["reward"].mean(), line={"color": color, "width": 3}, row=1, col=col)
    figure.update_annotations(font_size=12 if len(columns) < 10 else 10)
    figure.update_xaxes(tickfont_size=11, rangemode="tozero")
    figure.update_xaxes(title_text="episodes (count)", row=1, col=(len(columns) + 1) // 2)
    figure.update_yaxes(title_text=f"prompt score, {REWARD}", row=1, col=1)
    figure = laid_out(figure, "Distribution shift; number and line: mean", 560, barmode="stack")
    return figure.update_layout(margin_t=145)  # names take up to three rows below the legend


def quantile_curves(episodes: dict[str, pd.DataFrame], resamples: int = 0, seed: int = 0) -> go.Figure:
    """Mean reward on the lowest q % of prompts by prompt score, against q, as in the paper; on the left, the tail.

    resamples: if above 0, the figure has 95 % bootstrap bands over prompts.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.1, subplot_titles=["the hardest fifth", "all prompts"])
    for col, shares in enumerate((np.geomspace(0.01, 0.2, 40), np.arange(1, 101) / 100), start=1):
        for method in method_order(episodes):
            table = episodes[method]
            _add_curve(figure, method, shares, table["prompt_score"].to_numpy(), table, resamples, seed, col)
        figure.update_xaxes(title_text="hardest share of prompts (%)", rangemode="tozero", row=1, col=col)
    figure.update_yaxes(title_text="mean reward (logit)", row=1, col=1)
    figure = laid_out(figure, "Reward on the hardest prompts", 560)
    return figure.update_layout(margin_t=150)  # on a narrow page the legend takes three rows


def metric_intervals(report: Report, metrics: Sequence[str]) -> go.Figure:
    """Metrics of every method with their 95 % bootstrap intervals, one panel per metric.

    metrics: keys of the report; metrics that it lacks are left out.
    """
    metrics = [metric for metric in metrics if metric in report.names]
    figure = make_subplots(
        cols=len(metrics),
        shared_yaxes=True,
        subplot_titles=[html.escape(report.names[metric]).replace(", ", ",<br>") for metric in metrics],
    )
    methods = method_order(report.table.index)[::-1]
    for col, metric in enumerate(metrics, start=1):
        for method in methods:
            _add_interval(figure, method, *(report.table.loc[method, metric + end] for end in ENDS), col)
    figure.update_annotations(font_size=13)
    figure.update_yaxes(range=[-0.7, len(methods) - 0.3])
    return laid_out(figure, "Dot: estimate; bar: 95 % interval", 180 + 36 * len(methods), **NAMED)


def seed_scores(scores: pd.DataFrame, metric: str, title: str) -> go.Figure:
    """A metric over training seeds: one stroke per seed, and each method's mean with its 95 % t-interval.

    scores: one row per method and seed; columns method, seed and the metric.
    """
    figure = make_subplots(cols=1)
    for method in method_order(scores["method"].unique())[::-1]:
        values = scores.loc[scores["method"] == method, metric]
        _add_interval(figure, method, *seed_interval(values), 1)
        figure.add_scatter(
            x=values,
            y=[label_text(method)] * len(values),
            mode="markers",
            marker={"color": method_color(method), "size": 7, "symbol": "line-ns-open"},
        )
    figure.update_xaxes(title_text=title)
    return laid_out(figure, f"{title}; dot and bar: mean and 95 % interval over seeds; strokes: seeds", **NAMED)


def tail_clusters(clusters: pd.DataFrame) -> go.Figure:
    """The tail prompts as the policy sees them: embeddings in two principal components, one colour per cluster.

    clusters: columns x, y, cluster, prompt, prompt_score (see `cluster_prompts`).
    """
    figure = go.Figure()
    for cluster, rows in clusters.groupby("cluster"):
        mean = rows["prompt_score"].mean()
        figure.add_scatter(
            x=rows["x"],
            y=rows["y"],
            mode="markers",
            name=f"{cluster}: {counted(len(rows), 'prompt')}, mean score {mean:.2f}",
            marker={"color": CLUSTER_COLORS[cluster % 8], "symbol": CLUSTER_SYMBOLS[cluster % 8], "size": 9},
            customdata=[_wrapped(prompt) for prompt in rows["prompt"]],
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.update_xaxes(title_text="first principal component of the embedding")
    figure.update_yaxes(title_text="second principal component")
    return laid_out(figure, "Clusters of the tail prompts", 600).update_layout(margin_t=130)


def cvar_curves(episodes: dict[str, pd.DataFrame], resamples: int = 0, seed: int = 0) -> go.Figure:
    """CVaR of the reward against alpha: the mean over the worst alpha share of episodes; at 100 % over all.

    resamples: if above 0, the figure has 95 % bootstrap bands over prompts.
    """
    shares = np.geomspace(0.01, 1, 61)
    figure = make_subplots(cols=1)
    for method in method_order(episodes):
        table = episodes[method]
        _add_curve(figure, method, shares, table["reward"].to_numpy(), table, resamples, seed)
    ticks = [1, 2, 5, 10, 20, 50, 100]
    figure.update_xaxes(title_text="α: share of episodes, lowest reward first (%)", type="log", tickvals=ticks)
    figure.update_yaxes(title_text="CVaR of reward (logit)")
    return laid_out(figure, "The tail of the rewards")


def training_curves(training: dict[str, pd.DataFrame]) -> go.Figure:
    """The course of training, one panel per quantity and one smoothed line per method over its faint raw values.

    training: the logs training/<method>.jsonl (keys in `glossary`). Those of Quark, GRPO and RLOO have no returns
    and are left out.
    """
    training = {method: log for method, log in training.items() if set(TRAINING_PANELS) <= set(log)}
    figure = make_subplots(
        rows=4,
        cols=2,
        shared_xaxes=True,
        vertical_spacing=0.06,
        subplot_titles=list(TRAINING_PANELS.values()),
    )
    for method in method_order(training):
        for key in TRAINING_PANELS:
            _add_training_lines(figure, method, training[method], key)
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="iteration", row=4)
    return laid_out(figure, "Training", 1020).update_layout(margin_t=125)


def schedule_figure(
    schedules: dict[str, SoftRiskSchedule], along: Literal["iteration", "share"] = "iteration"
) -> go.Figure:
    """kept(m) / B, the share of the batch that each iteration trains on (eqs. 8-10), against m or m / M.

    One line per schedule; the last one is bold.
    """
    figure = go.Figure()
    for name, schedule in schedules.items():
        iterations, counts = np.arange(1, schedule.iterations + 1), np.asarray(schedule.kept_counts())
        last = name == list(schedules)[-1]
        figure.add_scatter(
            x=iterations if along == "iteration" else 100 * iterations / schedule.iterations,
            y=100 * counts / schedule.batch_size,
            customdata=counts,
            hovertemplate="%{x:.4g}: %{customdata} episodes",
            name=html.escape(name),
            line={"shape": "hv", "color": method_color("ra_rlhf"), "width": 4}
            if last
            else {"shape": "hv", "dash": "dot"},
        )
    figure.update_xaxes(title_text="iteration m" if along == "iteration" else "share of the iterations (%)")
    figure.update_yaxes(title_text="kept episodes (% of the batch)", range=[0, 103])
    return laid_out(figure, "Soft-risk schedule", height=420)


# Traces


def _add_histogram(
    figure: go.Figure,
    table: pd.DataFrame,
    column: str,
    edges: np.ndarray,
    panel: int,
    positive_label: int,
    upright: bool = False,
) -> None:
    """Stacked bars by class label, in a row of panels or (upright) in a column of them.

    The legend shows the first bars of each label.
    """
    shown = {trace.name for trace in figure.data}
    labels = table["label"].map({1 - positive_label: 0, positive_label: 1, -1: -1}).fillna(2)
    values, counted = ("x", "y") if upright else ("y", "x")
    for label, (name, color) in LABELS.items():
        counts = np.histogram(table.loc[labels == label, column], edges)[0]
        if counts.any():
            figure.add_bar(
                **{values: (edges[:-1] + edges[1:]) / 2, counted: counts},
                orientation="v" if upright else "h",
                width=np.diff(edges),
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                marker={"color": color, "line_width": 0},
                row=panel if upright else 1,
                col=1 if upright else panel,
            )


def _add_interval(figure: go.Figure, method: str, value: float, low: float, high: float, col: int) -> None:
    width = (
        {} if np.isnan(low) else {"error_x": {"array": [high - value], "arrayminus": [value - low], "thickness": 2.5}}
    )
    marker = {"color": method_color(method), "size": 11}
    figure.add_scatter(x=[value], y=[label_text(method)], mode="markers", marker=marker, row=1, col=col, **width)


def _wrapped(text: str, most: int = 400) -> str:
    """A text for a hover label: shortened, escaped, and broken into lines."""
    return "<br>".join(html.escape(line) for line in textwrap.wrap(text[:most], 60))


def _add_curve(
    figure: go.Figure,
    method: str,
    shares: np.ndarray,
    keys: np.ndarray,
    table: pd.DataFrame,
    resamples: int,
    seed: int,
    col: int = 1,
) -> None:
    """Mean reward on the lowest shares by `keys`, with a band if there are resamples."""
    positions = prompt_positions(table)
    weights = bootstrap_weights(positions.max() + 1, resamples, np.random.default_rng(seed))[:, positions]
    rewards = table["reward"].to_numpy(dtype=float)
    means = np.stack([tail_mean(rewards, keys, share, weights) for share in shares])
    if resamples:
        low, high = np.quantile(means[:, 1:], [0.025, 0.975], axis=1)
        figure.add_scatter(
            x=100 * np.concatenate([shares, shares[::-1]]),
            y=np.concatenate([low, high[::-1]]),
            fill="toself",
            fillcolor=faint(method, 0.12),
            line={"width": 0},
            legendgroup=label_text(method),
            showlegend=False,
            hoverinfo="skip",
            row=1,
            col=col,
        )
    figure.add_scatter(
        x=100 * shares,
        y=means[:, 0],
        name=label_text(method),
        legendgroup=label_text(method),
        showlegend=col == 1,
        mode="lines",
        line=line_style(method),
        row=1,
        col=col,
    )


def _add_training_lines(figure: go.Figure, method: str, log: pd.DataFrame, key: str) -> None:
    panel = list(TRAINING_PANELS).index(key)
    x, y = log["iteration"], log[key]
    row, col = panel // 2 + 1, panel % 2 + 1
    figure.update_yaxes(rangemode="tozero" if key in FROM_ZERO else "normal", row=row, col=col)
    smooth = y if key in EXACT else y.rolling(max(1, len(y) // 10), center=True, min_periods=1).mean()
    common = {"x": x, "legendgroup": label_text(method), "mode": "lines"}
    figure.add_scatter(
        **common,
        y=y,
        line={"color": faint(method, 0.3), "width": 1},
        showlegend=False,
        hoverinfo="skip",
        row=row,
        col=col,
    )
    figure.add_scatter(
        **common,
        y=smooth,
        name=label_text(method),
        line=line_style(method),
        showlegend=panel == 0,
        row=row,
        col=col,
    )


# Parts


def _group_title(group: str, prompts: int) -> str:
    return f"{prompts} prompts" if group == "all" else f"{html.escape(group)}: {prompts} prompts"


def _bin_edges(values: Iterable[float]) -> np.ndarray:
    return np.histogram_bin_edges(np.asarray(values, dtype=float), bins=40)
