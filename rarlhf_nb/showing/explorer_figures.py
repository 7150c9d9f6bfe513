"""The figures of the widgets: the risk explorer, the schedule designer, and live training.

`..._figure` builds a whole figure. `..._changes` gives what a move of a control changes in each trace, so that a widget
can redraw the figure without building it again. Both take their numbers from the same function.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rarlhf_nb.core.methods import OTHER_COLOR
from rarlhf_nb.measuring.metrics import Interval, seed_interval
from rarlhf_nb.showing.look import REWARD, label_text, laid_out, line_style, method_color
from rarlhf_nb.showing.tails import ALPHAS, Ranking, Slot, Tails
from rarlhf_nb.training.risk import SoftRiskSchedule

REST_OPACITY, BAND_OPACITY = 0.3, 0.15
PRICES = {
    "cvar": "measured tail (logit)",
    "mean": "mean reward (logit)",
    "kl": "KL (nats)",
    "perplexity": "perplexity",
}
EARLIER_COLOR = "#8A8A8A"
ALONG_TITLES = {"iteration": "iteration m", "share": "share of the iterations (%)"}
Change = dict  # the properties of a trace that a move of a control changes
Sweeps = dict[str, dict[float, list[Tails]]]  # sweep -> trained alpha -> tails by seed, the shown seed first


# Distributions: one row per method, with a histogram and a cumulative curve


class Axes(NamedTuple):
    """What all panels share so that they compare: bin edges, the grid of the cumulative curve, the top count."""

    edges: np.ndarray
    grid: np.ndarray
    top: float


def shared_axes(measured: Sequence[Tails], bins: int = 40) -> Axes:
    """Axes that fit every method, including the methods of a sweep that are not shown."""
    everything = np.concatenate([tails.rewards for tails in measured])
    edges = np.histogram_bin_edges(everything, bins)
    top = max(np.histogram(tails.rewards, edges)[0].max() for tails in measured)
    return Axes(edges, np.linspace(edges[0], edges[-1], 161), 1.06 * float(top))


def distribution_figure(slots: Sequence[Slot], alpha: float, ranking: Ranking, axes: Axes) -> go.Figure:
    """Each method's rewards as a histogram and a cumulative curve: tail filled, VaR solid, tail mean dotted."""
    titles = [text for title in distribution_titles(slots, alpha, ranking) for text in (title, "")]
    figure = make_subplots(
        rows=len(slots),
        cols=2,
        shared_xaxes="all",
        shared_yaxes="columns",
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.09,
        vertical_spacing=0.3 / len(slots),
        subplot_titles=titles,
    )
    changes = iter(distribution_changes(slots, alpha, ranking, axes))
    for row in range(1, len(slots) + 1):
        for kind, still, column in _distribution_traces(axes):
            figure.add_trace(kind(**still, showlegend=False).update(next(changes)), row=row, col=column)
    figure.update_annotations(x=0, xanchor="left", font_size=14)
    figure.update_yaxes(range=[0, axes.top], title_text="episodes", title_font_size=12, col=1)
    figure.update_yaxes(range=[0, 102], title_text="% at most", title_font_size=12, col=2)
    figure.update_xaxes(range=[axes.edges[0], axes.edges[-1]])
    figure.update_xaxes(title_text=REWARD, title_font_size=13, row=len(slots))
    return laid_out(figure, height=110 + 130 * len(slots), barmode="stack", margin={"t": 40})


def distribution_titles(slots: Sequence[Slot], alpha: float, ranking: Ranking) -> list[str]:
    """The title above each method's panels, with its numbers."""
    return [
        f"<b>{label_text(slot.method)}</b>   "
        + (f"VaR {slot.tails.threshold(alpha):.2f}, CVaR " if ranking == "reward" else "mean of the tail ")
        + f"{slot.tails.resampled(alpha, ranking)[0]:.2f}"
        for slot in slots
    ]


def distribution_changes(slots: Sequence[Slot], alpha: float, ranking: Ranking, axes: Axes) -> list[Change]:
    """The changing part of every trace of `distribution_figure`, seven traces per slot."""
    return [change for slot in slots for change in _slot_changes(slot, alpha, ranking, axes)]


def _distribution_traces(axes: Axes) -> list[tuple[type, dict, int]]:
    """The fixed part of a method's traces: kind, settings, column."""
    bars = {"x": (axes.edges[:-1] + axes.edges[1:]) / 2, "width": np.diff(axes.edges)}
    line = {"mode": "lines", "hoverinfo": "skip"}
    return [
        (go.Bar, bars | {"name": "tail"}, 1),
        (go.Bar, bars | {"name": "the rest", "marker_opacity": REST_OPACITY}, 1),
        (go.Scatter, line | {"name": "VaR"}, 1),
        (go.Scatter, line | {"name": "tail mean", "line": {"color": "#222222", "dash": "dot", "width": 2}}, 1),
        (go.Scatter, line | {"name": "tail", "x": axes.grid, "fill": "tozeroy", "line": {"width": 0}}, 2),
        (go.Scatter, {"name": "all", "x": axes.grid, "mode": "lines"}, 2),
        (go.Scatter, line | {"name": "VaR"}, 2),
    ]


def _slot_changes(slot: Slot, alpha: float, ranking: Ranking, axes: Axes) -> list[Change]:
    """A method's traces at one alpha. By prompt score there is no VaR of the rewards, so its lines are empty."""
    tails, color = slot.tails, method_color(slot.method)
    rewards = tails.rewards[tails.tail(alpha, ranking)]
    lowest_first = tails.rewards[tails.orders["reward"]]
    inside = np.histogram(rewards, axes.edges)[0]
    outside = np.histogram(tails.rewards, axes.edges)[0] - inside
    mean = float(tails.resampled(alpha, ranking)[0])
    at = [tails.threshold(alpha)] * 2 if ranking == "reward" else []

    def reached(ordered: np.ndarray) -> np.ndarray:
        return 100 * np.searchsorted(ordered, axes.grid, side="right") / len(tails.rewards)

    return [
        {"y": inside, "marker": {"color": color}},
        {"y": outside, "marker": {"color": color}},
        {"x": at, "y": [0, axes.top][: len(at)], "line": {"color": "#222222", "width": 2.5}},
        {"x": [mean, mean], "y": [0, axes.top]},
        # nothing beyond the best reward in the tail, so that the fill ends there
        {"y": np.where(axes.grid <= rewards.max(), reached(np.sort(rewards)), np.nan), "fillcolor": color},
        {"y": reached(lowest_first), "line": {"color": color}},
        {"x": at, "y": [0, 100][: len(at)], "line": {"color": "#222222", "width": 2.5}},
    ]


# The tail mean against alpha


def curve_figure(slots: Sequence[Slot], alpha: float, ranking: Ranking) -> go.Figure:
    """The tail mean of every method at every alpha, with 95 % bands, and a line at the current alpha."""
    figure = go.Figure()
    changes = curve_changes(slots, alpha, ranking)
    figure.add_scatter(mode="lines", hoverinfo="skip", showlegend=False, line={"color": OTHER_COLOR, "dash": "dash"})
    for _ in slots:
        figure.add_scatter(fill="toself", line={"width": 0}, opacity=BAND_OPACITY, showlegend=False, hoverinfo="skip")
        figure.add_scatter(mode="lines")
        figure.add_scatter(mode="markers", showlegend=False, marker={"size": 10}, hoverinfo="skip")
    for trace, change in zip(figure.data, changes, strict=True):
        trace.update(change)
    ticks = [1, 2, 5, 10, 20, 50, 100]
    figure.update_xaxes(
        title_text="α: lowest share (%)", title_font_size=13, type="log", tickvals=ticks, range=[-0.03, 2.03]
    )
    figure.update_yaxes(title_text="mean reward of that share (logit)", title_font_size=13)
    return laid_out(figure, height=400, margin={"t": 60}, legend_y=0.99)


def curve_changes(slots: Sequence[Slot], alpha: float, ranking: Ranking) -> list[Change]:
    """The changing part of every trace of `curve_figure`: the line at alpha, then three traces per slot."""
    curves = [slot.tails.means[ranking] for slot in slots]
    bands = [np.quantile(curve[:, 1:], [0.025, 0.975], axis=1) for curve in curves]
    lowest, highest = min(low.min() for low, _ in bands), max(high.max() for _, high in bands)
    changes: list[Change] = [{"x": [100 * alpha] * 2, "y": [lowest, highest]}]
    around = 100 * np.concatenate([ALPHAS, ALPHAS[::-1]])
    for slot, curve, (low, high) in zip(slots, curves, bands, strict=True):
        name, color = label_text(slot.method), method_color(slot.method)
        here = float(slot.tails.resampled(alpha, ranking)[0])
        changes += [
            {"x": around, "y": np.concatenate([low, high[::-1]]), "fillcolor": color, "legendgroup": name},
            {"x": 100 * ALPHAS, "y": curve[:, 0], "name": name, "legendgroup": name, "line": line_style(slot.method)},
            {"x": [100 * alpha], "y": [here], "legendgroup": name, "marker": {"color": color}},
        ]
    return changes


# The cost of the trained alpha


def price_figure(sweeps: Sweeps, alpha: float, ranking: Ranking, trained: float) -> go.Figure:
    """Gain and cost of the trained alpha: tail mean, mean, KL and perplexity, one line per sweep.

    With other seeds a line is the mean over seeds, with a band for its 95 % t interval.
    """
    prices, (fewest, most) = measured_prices(sweeps), seed_counts(sweeps)
    titles = {price: PRICES[price] for price in prices}
    caption = "trained α (large dot: the chosen one)"
    if most > 1:
        titles |= {"perplexity": "perplexity, shown seed only"}
        seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
        caption += f"<br>line: mean of {seeds} seeds; band: its 95 % interval"
    panels = [titles[price] for price in prices]
    figure = make_subplots(rows=2, cols=2, subplot_titles=panels, vertical_spacing=0.17)
    changes = iter(price_changes(sweeps, alpha, ranking, trained))
    for panel in range(len(prices)):
        place = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        for sweep in sweeps:
            style = line_style(sweep) | {"color": method_color(sweep)}
            name = {"name": label_text(sweep), "legendgroup": sweep, "showlegend": panel == 0}
            if most > 1:
                figure.add_trace(_price_band(sweep).update(next(changes)), **place)
            figure.add_trace(go.Scatter(mode="lines+markers", line=style, **name).update(next(changes)), **place)
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text=caption, title_font_size=12, row=2)
    return laid_out(figure, height=460, margin={"t": 70}, legend_y=0.99)


def price_changes(sweeps: Sweeps, alpha: float, ranking: Ranking, trained: float) -> list[Change]:
    """The changing part of every trace of `price_figure`, panel by panel and sweep by sweep."""
    changes: list[Change] = []
    banded = seed_counts(sweeps)[-1] > 1
    for price in measured_prices(sweeps):
        for members in sweeps.values():
            alphas = sorted(members)
            found = [_price_interval(members[at], price, alpha, ranking) for at in alphas]
            sizes = [15 if at == trained else 7 for at in alphas]
            changes += [_around(alphas, found)] if banded else []
            changes.append({"x": alphas, "y": np.array([each.value for each in found]), "marker": {"size": sizes}})
    return changes


def measured_prices(sweeps: Sweeps) -> list[str]:
    """The entries of `PRICES` that are known for at least one method."""
    tails = [each for members in sweeps.values() for seeds in members.values() for each in seeds]
    return [price for price in PRICES if any(np.isfinite(_price(each, price, 1.0, "reward")) for each in tails)]


def seed_counts(sweeps: Sweeps) -> tuple[int, int]:
    """The fewest and the most seeds of a trained alpha."""
    counts = [len(seeds) for members in sweeps.values() for seeds in members.values()]
    return min(counts), max(counts)


def _price_band(sweep: str) -> go.Scatter:
    return go.Scatter(
        mode="lines",
        fill="toself",
        fillcolor=method_color(sweep),
        line={"width": 0},
        opacity=BAND_OPACITY,
        legendgroup=sweep,
        showlegend=False,
        hoverinfo="skip",
    )


def _around(alphas: Sequence[float], intervals: Sequence[Interval]) -> Change:
    """The outline of the intervals, along their low ends and back along their high ends."""
    known = [(at, each) for at, each in zip(alphas, intervals, strict=True) if np.isfinite(each.low)]
    low, high = ([getattr(each, end) for _, each in known] for end in ("low", "high"))
    along = [at for at, _ in known]
    return {"x": np.array(along + along[::-1]), "y": np.array(low + high[::-1])}


def _price_interval(seeds: Sequence[Tails], price: str, alpha: float, ranking: Ranking) -> Interval:
    """A price over the seeds that measured it."""
    values = np.array([_price(each, price, alpha, ranking) for each in seeds])
    return seed_interval(values[np.isfinite(values)])


def _price(tails: Tails, price: str, alpha: float, ranking: Ranking) -> float:
    if price == "cvar":
        return float(tails.resampled(alpha, ranking)[0])
    return float(tails.rewards.mean()) if price == "mean" else getattr(tails, price)


# The schedule


def shares_figure(schedules: dict[str, SoftRiskSchedule], along: Literal["iteration", "share"]) -> go.Figure:
    """kept(m) / B of several schedules (eqs. 8-10), against iteration or share of training; the last one is bold."""
    figure = go.Figure()
    for name, change in zip(schedules, shares_changes(schedules, along), strict=True):
        last = name == list(schedules)[-1]
        style = {"shape": "hv", "width": 4 if last else 2, "dash": "solid" if last else "dot"}
        style |= {"color": method_color("ra_rlhf")} if last else {}
        figure.add_scatter(name=label_text(name), line=style, **change)
    figure.update_xaxes(title_text=ALONG_TITLES[along], title_font_size=13)
    figure.update_yaxes(title_text="kept episodes (% of the batch)", range=[0, 103], title_font_size=13)
    return laid_out(figure, height=400, margin={"t": 60}, legend_y=0.99)


def shares_changes(schedules: dict[str, SoftRiskSchedule], along: Literal["iteration", "share"]) -> list[Change]:
    """The changing part of every trace of `shares_figure`."""
    changes = []
    for schedule in schedules.values():
        iterations = np.arange(1, schedule.iterations + 1)
        x = iterations if along == "iteration" else 100 * iterations / schedule.iterations
        counts = np.asarray(schedule.kept_counts())
        hover = "m %{x:.4g}: %{customdata} episodes"
        changes.append({"x": x, "y": 100 * counts / schedule.batch_size, "customdata": counts, "hovertemplate": hover})
    return changes


def saved_share(schedule: SoftRiskSchedule) -> float:
    """The share of gradient work that a schedule saves: 1 - sum_m kept(m) / (B M)."""
    return 1 - sum(schedule.kept_counts()) / (schedule.batch_size * schedule.iterations)


# Live training


class Batch(NamedTuple):
    """The last batch as it is drawn, (B,) each. kept: whether the episode is in the tail. texts: hover labels."""

    rewards: np.ndarray
    kl: np.ndarray
    kept: np.ndarray
    texts: list[str]


def training_figure(earlier: dict[str, pd.DataFrame], tail_share: float) -> go.Figure:
    """Mean reward and CVaR of each batch during training; live training adds `training_traces`.

    earlier: training logs by method; the PPO logs are drawn in grey, and hold mean rewards only.
    """
    titles = ["mean reward of the batch (logit)", f"CVaR {100 * tail_share:g} % of the batch (logit)"]
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    trained = {method: log for method, log in earlier.items() if {"iteration", "env_reward_mean"} <= set(log)}
    dashes = cycle(["dot", "dash", "dashdot", "longdash", "longdashdot"])
    for (method, log), dash in zip(trained.items(), dashes, strict=False):
        style = {"color": EARLIER_COLOR, "width": 1.5, "dash": dash}
        name = f"{label_text(method)} (the run)"
        figure.add_scatter(
            x=log["iteration"], y=log["env_reward_mean"], name=name, mode="lines", line=style, row=1, col=1
        )
    figure.add_scatter(x=[], y=[], showlegend=False, row=1, col=2)  # gives the empty panel its axes
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="iteration", title_font_size=13)
    return laid_out(figure, height=400, margin={"t": 95}, legend_y=0.99)


def training_traces(name: str, table: pd.DataFrame, color: str) -> list[go.Scatter]:
    """The two lines of a run."""
    shown = {"name": label_text(name), "legendgroup": label_text(name), "line": {"color": color, "width": 2.5}}
    mean = go.Scatter(x=table["iteration"], y=table["mean"], mode="lines", **shown)
    return [mean, go.Scatter(x=table["iteration"], y=table["tail"], mode="lines", showlegend=False, **shown)]


def batch_figure(batch: Batch | None) -> go.Figure:
    """The episodes of a batch, reward against KL; the episodes kept for the update are coloured."""
    figure = go.Figure()
    styles = {
        "dropped": {"color": "#BBBBBB", "size": 8, "symbol": "circle-open", "line_width": 2},
        "kept": {"color": method_color("ra_rlhf"), "size": 9},
    }
    for (name, style), change in zip(styles.items(), batch_changes(batch), strict=True):
        hover = {"hovertemplate": "%{text}<extra></extra>"}
        figure.add_scatter(name=name, mode="markers", marker=style, **hover, **change)
    figure.update_xaxes(title_text="environment reward (logit)", title_font_size=13)
    figure.update_yaxes(title_text="KL (nats)", title_font_size=13)
    return laid_out(figure, height=340, margin={"t": 40}, legend_y=0.99)


def batch_changes(batch: Batch | None) -> list[Change]:
    """The dots of `batch_figure`: dropped episodes, then kept episodes."""
    if batch is None:
        return [{"x": [], "y": [], "text": []}] * 2
    return [
        {"x": batch.rewards[rows], "y": batch.kl[rows], "text": [batch.texts[row] for row in np.flatnonzero(rows)]}
        for rows in (~batch.kept, batch.kept)
    ]
