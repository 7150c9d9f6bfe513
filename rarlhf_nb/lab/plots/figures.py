"""The figures: each function takes tables and returns a plotly figure. Texts from data are escaped."""

import html
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rarlhf_nb.lab.evaluation.cells import counted
from rarlhf_nb.lab.evaluation.metrics import bootstrap_weights, prompt_positions, seed_interval, tail_means
from rarlhf_nb.lab.evaluation.report import Report
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
from rarlhf_nb.lab.profiles import load_profile
from rarlhf_nb.lab.texts import hover_text
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
EXACT = ["kl_coef", "kept"]  # set, not measured, so there is nothing to smooth
FROM_ZERO = [*EXACT, "completion_length"]  # often constant, so that an automatic range would be arbitrary
NAMED = {"showlegend": False, "margin_l": 160, "margin_t": 90}  # for figures whose y axis names the methods


def prompt_score_histogram(
    test: pd.DataFrame, tail_threshold: float | None = None, positive_label: int = 1
) -> go.Figure:
    """The scores of the test prompts by class label, one panel per group of prompts.

    test: columns prompt_score, label, group. The dashed line is `tail_threshold`; tail prompts lie to its left.
    positive_label: that of the texts that are wanted.
    """
    groups = test["group"].value_counts()
    panels = {
        ("" if group == "all" else f"{html.escape(group)}: ") + f"{count} prompts": test[test["group"] == group]
        for group, count in groups.items()
    }
    counts = _counts_by_label(panels, "prompt_score", positive_label)
    spacing = {"facet_col_wrap": 1, "facet_row_spacing": 0.1}
    figure = _panels(px.bar(counts, x="at", y="count", facet_col="panel", orientation="v", **spacing, **_LABEL_COLORS))
    if tail_threshold is not None:
        figure.add_vline(x=tail_threshold, line={"dash": "dash", "color": "#222222"})
    figure.update_yaxes(title_text="prompts (count)", matches=None)
    figure.update_xaxes(title_text="prompt score (logit)", row=1)
    figure.update_annotations(x=0, xanchor="left", font_size=15)
    dashed = "" if tail_threshold is None else f"; dashed: tail threshold {tail_threshold:g}"
    return laid_out(figure, f"Scores of the test prompts{dashed}", 170 + 230 * len(groups), barmode="stack")


def distribution_shift(test: pd.DataFrame, episodes: dict[str, pd.DataFrame], positive_label: int = 1) -> go.Figure:
    """How each method shifts the distribution: one column per method, after one for the prompts' own scores.

    Counts go to the right and logits upwards, on one shared axis, by class label of the prompt's text; the line is the
    mean. test: columns prompt_score, label. positive_label: that of the texts that are wanted.
    """
    columns = [("Prompts", OTHER_COLOR, test.assign(reward=test["prompt_score"]))]
    columns += [(label_text(method), method_color(method), episodes[method]) for method in method_order(episodes)]
    panels = {
        f"{name.replace(' (', '<br>(').replace(' α', '<br>α')}<br>{table['reward'].mean():.2f}": table
        for name, _, table in columns
    }
    counts = _counts_by_label(panels, "reward", positive_label)
    figure = px.bar(
        counts, x="count", y="at", facet_col="panel", orientation="h", facet_col_spacing=0.008, **_LABEL_COLORS
    )
    for col, (_, color, table) in enumerate(columns, start=1):
        # one round count per axis, since the tick labels of neighbours would overlap
        most = np.histogram(table["reward"], _bin_edges(panels, "reward"))[0].max()
        figure.update_xaxes(tickvals=[float(f"{0.75 * most:.0e}")], row=1, col=col)
        figure.add_hline(y=table["reward"].mean(), line={"color": color, "width": 3}, row=1, col=col)
    _panels(figure).update_annotations(font_size=12 if len(columns) < 10 else 10)
    figure.update_xaxes(tickfont_size=11, rangemode="tozero", matches=None, title_text="")
    figure.update_xaxes(title_text="episodes (count)", row=1, col=(len(columns) + 1) // 2)
    figure.update_yaxes(title_text=f"prompt score, {REWARD}", row=1, col=1)
    figure = laid_out(figure, "Distribution shift; number and line: mean", 560, barmode="stack")
    return figure.update_layout(margin_t=145)  # names take up to three rows below the legend


def quantile_curves(episodes: dict[str, pd.DataFrame], resamples: int = 0) -> go.Figure:
    """Mean reward on the lowest q % of prompts by prompt score, against q, as in the paper; on the left, the tail.

    resamples: if above 0, the figure has 95 % bootstrap bands over prompts.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.1, subplot_titles=["the hardest fifth", "all prompts"])
    for col, shares in enumerate((np.geomspace(0.01, 0.2, 40), np.arange(1, 101) / 100), start=1):
        for method in method_order(episodes):
            curve = _tail_curve(episodes[method], "prompt_score", shares, resamples)
            add_curve(figure, method, 100 * shares, *curve, col=col, mode="lines")
    figure.update_xaxes(title_text="hardest share of prompts (%)", rangemode="tozero")
    figure.update_yaxes(title_text="mean reward (logit)", col=1)
    figure = laid_out(figure, "Reward on the hardest prompts", 560)
    return figure.update_layout(margin_t=150)  # on a narrow page the legend takes three rows


def cvar_curves(episodes: dict[str, pd.DataFrame], resamples: int = 0) -> go.Figure:
    """CVaR of the reward against alpha: the mean over the worst alpha share of episodes; at 100 % over all.

    resamples: if above 0, the figure has 95 % bootstrap bands over prompts.
    """
    shares = np.geomspace(0.01, 1, 61)
    figure = make_subplots()
    for method in method_order(episodes):
        curve = _tail_curve(episodes[method], "reward", shares, resamples)
        add_curve(figure, method, 100 * shares, *curve, mode="lines")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    figure.update_xaxes(title_text="α: share of episodes, lowest reward first (%)", type="log", tickvals=ticks)
    figure.update_yaxes(title_text="CVaR of reward (logit)")
    return laid_out(figure, "The tail of the rewards")


def metric_intervals(report: Report, metrics: Sequence[str]) -> go.Figure:
    """Metrics of every method with their 95 % bootstrap intervals, one panel per metric.

    metrics: keys of the report; metrics that it lacks are left out.
    """
    titles = {
        metric: html.escape(report.names[metric]).replace(", ", ",<br>") for metric in metrics if metric in report.names
    }
    table = pd.concat([report.of(metric).assign(panel=title) for metric, title in titles.items()]).reset_index()
    figure = _interval_dots(table, facet_col="panel", facet_col_spacing=0.05)
    figure.update_xaxes(matches=None, title_text="").update_annotations(font_size=13)
    methods = table["method"].nunique()
    figure.update_yaxes(range=[-0.7, methods - 0.3])
    return laid_out(figure, "Dot: estimate; bar: 95 % interval", 180 + 36 * methods, **NAMED)


def seed_scores(scores: pd.DataFrame, metric: str, title: str) -> go.Figure:
    """A metric over training seeds: one stroke per seed, and each method's mean with its 95 % t-interval.

    scores: one row per method and seed; columns method, seed and the metric.
    """
    values = {method: rows[metric] for method, rows in scores.groupby("method")}
    table = pd.DataFrame([{"method": method} | seed_interval(found)._asdict() for method, found in values.items()])
    figure = _interval_dots(table)
    for method, found in values.items():
        marker = {"color": method_color(method), "size": 7, "symbol": "line-ns-open"}
        figure.add_scatter(x=found, y=[label_text(method)] * len(found), mode="markers", marker=marker)
    figure.update_xaxes(title_text=title)
    return laid_out(figure, f"{title}; dot and bar: mean and 95 % interval over seeds; strokes: seeds", **NAMED)


def tail_clusters(clusters: pd.DataFrame) -> go.Figure:
    """The tail prompts as the policy sees them: embeddings in two principal components, one colour per cluster.

    clusters: columns x, y, cluster, prompt, prompt_score (see `cluster_prompts`).
    """
    names = {
        cluster: f"{cluster}: {counted(len(scores), 'prompt')}, mean score {scores.mean():.2f}"
        for cluster, scores in clusters.groupby("cluster")["prompt_score"]
    }
    table = clusters.sort_values("cluster", kind="stable")
    table = table.assign(name=table["cluster"].map(names), text=table["prompt"].map(hover_text))
    looks = {"color_discrete_sequence": CLUSTER_COLORS, "symbol_sequence": CLUSTER_SYMBOLS, "custom_data": ["text"]}
    figure = _panels(px.scatter(table, x="x", y="y", color="name", symbol="name", **looks))
    figure.update_traces(marker_size=9, hovertemplate="%{customdata[0]}<extra></extra>")
    figure.update_xaxes(title_text="first principal component of the embedding")
    figure.update_yaxes(title_text="second principal component")
    return laid_out(figure, "Clusters of the tail prompts", 600).update_layout(margin_t=130)


def training_curves(training: dict[str, pd.DataFrame]) -> go.Figure:
    """The course of training, one panel per quantity and one smoothed line per method over its faint raw values.

    training: the logs training/<method>.jsonl (keys in `glossary`). Those of Quark, GRPO and RLOO have no returns
    and are left out.
    """
    complete = [method for method in method_order(training) if set(TRAINING_PANELS) <= set(training[method])]
    logs = {method: training[method] for method in complete}
    if not logs:
        return laid_out(go.Figure(), "Training: no log of PPO")
    figure = _training_lines(logs).update_traces(line_width=1, opacity=0.3, showlegend=False, hoverinfo="skip")
    figure.add_traces(_training_lines({method: _smoothed(log) for method, log in logs.items()}).data)
    _panels(figure).update_annotations(font_size=14)
    figure.update_yaxes(matches=None, showticklabels=True, title_text="")
    for panel, key in enumerate(TRAINING_PANELS):  # whose rows are counted from below
        if key in FROM_ZERO:
            figure.update_yaxes(rangemode="tozero", row=4 - panel // 2, col=panel % 2 + 1)
    return laid_out(figure, "Training", 1020).update_layout(margin_t=125)


def paper_schedules() -> dict[str, SoftRiskSchedule]:
    """The schedules of the paper's three tasks, by their names in figures and tables."""
    tasks = {"IMDB-Gen": "imdb-gpt2", "Jigsaw-Gen": "jigsaw-gpt2", "RTP-Gen": "rtp-gpt2"}
    return {f"{task} (paper)": load_profile(profile).schedule() for task, profile in tasks.items()}


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
            line={"shape": "hv"} | ({"color": method_color("ra_rlhf"), "width": 4} if last else {"dash": "dot"}),
        )
    figure.update_xaxes(title_text="iteration m" if along == "iteration" else "share of the iterations (%)")
    figure.update_yaxes(title_text="kept episodes (% of the batch)", range=[0, 103])
    return laid_out(figure, "Soft-risk schedule")


# Parts


def add_curve(
    figure: go.Figure,
    method: str,
    x: np.ndarray,
    value: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    col: int = 1,
    **style: Any,
) -> None:
    """A method's line over the band of its intervals, if they are known; the legend has it once. x to high: (N,)."""
    name, known = label_text(method), np.isfinite(low)
    place = {"row": 1, "col": col, "legendgroup": name}
    if known.any():
        figure.add_scatter(
            x=np.concatenate([x[known], x[known][::-1]]),
            y=np.concatenate([low[known], high[known][::-1]]),
            mode="lines",
            fill="toself",
            fillcolor=faint(method, 0.13),
            line={"width": 0},
            showlegend=False,
            hoverinfo="skip",
            **place,
        )
    figure.add_scatter(x=x, y=value, name=name, showlegend=col == 1, line=line_style(method), **place, **style)


def _tail_curve(
    table: pd.DataFrame, by: str, shares: np.ndarray, resamples: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean reward on the lowest shares by the column `by`, and both ends of its 95 % interval: (N,) each."""
    positions = prompt_positions(table)
    weights = bootstrap_weights(positions.max() + 1, resamples, np.random.default_rng(0))[:, positions]
    means = tail_means(table["reward"].to_numpy(dtype=float), table[by].to_numpy(dtype=float), weights, shares)
    ends = np.quantile(means[:, 1:], [0.025, 0.975], axis=1) if resamples else np.full((2, len(shares)), np.nan)
    return means[:, 0], *ends


_LABEL_COLORS = {"color": "text", "color_discrete_map": dict(LABELS.values())}


def _counts_by_label(panels: dict[str, pd.DataFrame], column: str, positive_label: int) -> pd.DataFrame:
    """Histograms on common bins as one table, a row per panel, class label and bin: columns panel, text, at, count."""
    edges = _bin_edges(panels, column)
    rows = []
    for panel, table in panels.items():
        labels = table["label"].map({1 - positive_label: 0, positive_label: 1}).fillna(2)
        labels = labels.mask(table["label"].isna(), -1)
        for label, (text, _) in LABELS.items():
            counts = np.histogram(table.loc[labels == label, column], edges)[0]
            if counts.any():
                at = (edges[:-1] + edges[1:]) / 2
                rows.append(pd.DataFrame({"panel": panel, "text": text, "at": at, "count": counts}))
    return pd.concat(rows)


def _bin_edges(panels: dict[str, pd.DataFrame], column: str) -> np.ndarray:
    return np.histogram_bin_edges(np.concatenate([table[column] for table in panels.values()]), bins=40)


def _interval_dots(table: pd.DataFrame, **panels: Any) -> go.Figure:
    """A dot per method with a bar from low to high, in the order of the methods. table: method, value, low, high."""
    methods = method_order(table["method"].unique())
    table = table.assign(
        name=table["method"].map(label_text),
        above=table["high"] - table["value"],
        below=table["value"] - table["low"],
    )
    figure = px.scatter(
        table,
        x="value",
        y="name",
        color="name",
        error_x="above",
        error_x_minus="below",
        color_discrete_map={label_text(method): method_color(method) for method in methods},
        category_orders={"name": [label_text(method) for method in methods]},
        **panels,
    )
    return _panels(figure).update_traces(marker_size=11, error_x_thickness=2.5).update_yaxes(title_text="")


def _training_lines(logs: dict[str, pd.DataFrame]) -> go.Figure:
    """One panel per quantity, one line per method."""
    table = pd.concat({label_text(method): log[["iteration", *TRAINING_PANELS]] for method, log in logs.items()})
    table = table.rename_axis(["method", None]).reset_index("method")
    table = table.rename(columns=TRAINING_PANELS).melt(["iteration", "method"], var_name="panel")
    panels = {"facet_col": "panel", "facet_col_wrap": 2, "facet_row_spacing": 0.06, "facet_col_spacing": 0.09}
    figure = px.line(table, x="iteration", y="value", color="method", **panels)
    styles = {label_text(method): line_style(method) for method in logs}
    return figure.for_each_trace(lambda trace: trace.update(line=styles[trace.name]))


def _smoothed(log: pd.DataFrame) -> pd.DataFrame:
    """The log with moving averages over a tenth of the iterations."""
    measured = [key for key in TRAINING_PANELS if key not in EXACT]
    return log.assign(**log[measured].rolling(max(1, len(log) // 10), center=True, min_periods=1).mean())


def _panels(figure: go.Figure) -> go.Figure:
    """A figure of plotly.express in the project's look: panels and legend without the names of their columns."""
    figure.update_layout(margin=None, legend={"title_text": ""})
    return figure.for_each_annotation(lambda note: note.update(text=note.text.removeprefix("panel=")))
