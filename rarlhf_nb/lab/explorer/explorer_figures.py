"""The figures of the widgets: the risk explorer, the schedule designer, and live training.

`..._figure` builds a whole figure. `..._changes` gives what a move of a control of the explorer changes in each trace,
which the figure and the explorer in the browser share.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rarlhf_nb.lab.evaluation.metrics import Interval, seed_interval
from rarlhf_nb.lab.explorer.tails import ALPHAS, Ranking, Slot, Tails
from rarlhf_nb.lab.methods import METHODS, OTHER_COLOR
from rarlhf_nb.lab.plots.theme import REWARD, faint, label_text, laid_out, line_style, method_color
from rarlhf_nb.risk import SoftRiskSchedule

TAIL_OPACITY, BAND_OPACITY = 0.35, 0.15
PRICES = {
    "cvar": "measured tail (logit)",
    "mean": "mean reward (logit)",
    "kl": "KL (nats)",
    "perplexity": "perplexity",
}
EARLIER_COLOR = "#8A8A8A"
RUN_COLORS = [METHODS[key].color for key in ("ra_rlhf", "rlhf", "ra_rlhf_ru", "prompted", "dexperts", "quark", "sft")]
ALONG_TITLES = {"iteration": "iteration m", "share": "share of the iterations (%)"}
Change = dict  # the properties of a trace that a move of a control changes
Sweeps = dict[str, dict[float, list[Tails]]]  # sweep -> trained alpha -> tails by seed, the shown seed first


# Distributions and tail means: every method in one panel
#
# The styles are the fixed part of a method's traces, and the changes what depends on alpha. The live explorer
# (`explorer.js`) takes the styles from here, and its changes from the same numbers.

LINE = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False}
DISTRIBUTION_STYLES: list[dict] = [
    LINE | {"name": "tail", "fill": "tozeroy", "line": {"width": 0, "shape": "hv"}},
    {"type": "scatter", "mode": "lines", "line": {"width": 2, "shape": "hv"}},
    LINE | {"name": "VaR", "line": {"width": 2}},
    LINE | {"name": "tail mean", "line": {"width": 2.5, "dash": "dot"}},
]
CURVE_STYLES: list[dict] = [
    LINE | {"fill": "toself", "line": {"width": 0}, "opacity": BAND_OPACITY},
    {"type": "scatter", "mode": "lines", "line": {"width": 2.5}},
    LINE | {"mode": "markers", "marker": {"size": 10}},
]
MARK = {"color": OTHER_COLOR, "dash": "dash", "width": 1.5}  # the line at the chosen alpha
COMPACT = {"margin": {"l": 52, "r": 12, "t": 12, "b": 44}, "showlegend": True, "font_size": 12}


class Axes(NamedTuple):
    """What all methods share so that they compare: bin edges and the top count."""

    edges: np.ndarray
    top: float


def shared_axes(measured: Sequence[Tails], bins: int = 40) -> Axes:
    """Axes that fit every method, including the methods of a sweep that are not shown."""
    edges = np.histogram_bin_edges(np.concatenate([tails.rewards for tails in measured]), bins)
    return Axes(edges, 1.06 * float(max(bin_counts(tails, edges).max() for tails in measured)))


def bin_counts(tails: Tails, edges: np.ndarray) -> np.ndarray:
    """The number of episodes in each bin."""
    return np.histogram(tails.rewards, edges)[0]


def distribution_figure(slots: Sequence[Slot], alpha: float, ranking: Ranking, axes: Axes) -> go.Figure:
    """The methods' rewards as outlines over each other: tail filled, VaR solid, tail mean dotted."""
    figure = _layered(DISTRIBUTION_STYLES, [_distribution_changes(slot, alpha, ranking, axes) for slot in slots])
    figure.update_yaxes(range=[0, axes.top], title_text="episodes (count)", title_font_size=12)
    figure.update_xaxes(range=[axes.edges[0], axes.edges[-1]], title_text=REWARD, title_font_size=12)
    return laid_out(figure, height=360, **COMPACT)


def curve_figure(slots: Sequence[Slot], alpha: float, ranking: Ranking) -> go.Figure:
    """The tail mean of every method at every alpha, with 95 % bands, and a line at the current alpha."""
    figure = _layered(CURVE_STYLES, [_curve_changes(slot, alpha, ranking) for slot in slots])
    figure.add_vline(x=100 * alpha, line=MARK)
    ticks = [1, 2, 5, 10, 20, 50, 100]
    figure.update_xaxes(
        title_text="measured α: lowest share (%)", title_font_size=12, type="log", tickvals=ticks, range=[-0.03, 2.03]
    )
    figure.update_yaxes(title_text="tail mean (logit)", title_font_size=12)
    return laid_out(figure, height=360, **COMPACT)


def _layered(styles: Sequence[dict], changes: Sequence[Sequence[Change]]) -> go.Figure:
    """A figure in which the traces of one style, of all methods, lie below those of the next."""
    figure = go.Figure()
    for style, layer in zip(styles, zip(*changes, strict=True) if changes else [()] * len(styles), strict=True):
        for change in layer:
            figure.add_trace(style).data[-1].update(change)
    return figure


def _distribution_changes(slot: Slot, alpha: float, ranking: Ranking, axes: Axes) -> list[Change]:
    """A method's traces at one alpha. By prompt score there is no VaR of the rewards, so its line is empty."""
    tails, color = slot.tails, method_color(slot.method)
    inside = np.histogram(tails.rewards[tails.tail(alpha, ranking)], axes.edges)[0]
    mean = float(tails.resampled(alpha, ranking)[0])
    at = [tails.threshold(alpha)] * 2 if ranking == "reward" else []
    numbers = f"VaR {at[0]:.2f}, CVaR {mean:.2f}" if at else f"mean of the tail {mean:.2f}"
    x, whole = np.concatenate([axes.edges[:1], axes.edges]), bin_counts(tails, axes.edges)
    return [
        {"x": x, "y": np.array([0, *inside, 0]), "fillcolor": faint(slot.method, TAIL_OPACITY)},
        {
            "x": x,
            "y": np.array([0, *whole, 0]),
            "line": {"color": color},
            "name": f"{label_text(slot.method)} {numbers}",
        },
        {"x": at, "y": [0, axes.top][: len(at)], "line": {"color": color}},
        {"x": [mean, mean], "y": [0, axes.top], "line": {"color": color}},
    ]


def _curve_changes(slot: Slot, alpha: float, ranking: Ranking) -> list[Change]:
    curve, color = slot.tails.means[ranking], method_color(slot.method)
    low, high = np.quantile(curve[:, 1:], [0.025, 0.975], axis=1) if curve.shape[1] > 1 else (curve[:, 0],) * 2
    line = {"color": color, "dash": line_style(slot.method)["dash"]}
    return [
        {"x": 100 * np.concatenate([ALPHAS, ALPHAS[::-1]]), "y": np.concatenate([low, high[::-1]]), "fillcolor": color},
        {"x": 100 * ALPHAS, "y": curve[:, 0], "name": label_text(slot.method), "line": line},
        {"x": [100 * alpha], "y": [float(slot.tails.resampled(alpha, ranking)[0])], "marker": {"color": color}},
    ]


# The cost of the trained alpha


def price_figure(sweeps: Sweeps, alpha: float, ranking: Ranking, trained: float) -> go.Figure:
    """Gain and cost of the trained alpha: tail mean, mean, KL and perplexity, one line per sweep.

    With other seeds a line is the mean over seeds, with a band for its 95 % t interval.
    """
    prices, banded = measured_prices(sweeps), seed_counts(sweeps)[-1] > 1
    titles = PRICES | ({"perplexity": "perplexity, shown seed only"} if banded else {})
    panels = [titles[price] for price in prices]
    figure = make_subplots(cols=len(panels), subplot_titles=panels, horizontal_spacing=0.06)
    for col, price in enumerate(prices, start=1):
        changes = iter(price_changes(sweeps, price, alpha, ranking))
        for sweep in sweeps:
            style = line_style(sweep) | {"color": method_color(sweep)}
            name = {"name": label_text(sweep), "legendgroup": sweep, "showlegend": col == 1}
            if banded:
                figure.add_trace(_price_band(sweep).update(next(changes)), row=1, col=col)
            line = go.Scatter(mode="lines+markers", line=style, **name)
            figure.add_trace(line.update(next(changes)), row=1, col=col)
    figure.add_vline(x=trained, line=MARK)
    figure.update_annotations(font_size=13)
    figure.update_xaxes(title_text="trained α", title_font_size=12, type="log", tickvals=[0.05, 0.1, 0.2, 0.4, 1])
    return laid_out(figure, height=300, margin={"t": 64, "l": 45, "r": 12, "b": 46}, font_size=12, legend_y=0.99)


def price_title(sweeps: Sweeps) -> str:
    """The heading of `price_figure`."""
    title, (fewest, most) = "What the trained α brings and costs (dashed: the chosen one)", seed_counts(sweeps)
    seeds = f"{most}" if fewest == most else f"{fewest} to {most}"
    return title + (f"; line: mean of {seeds} seeds, band: its 95 % interval" if most > 1 else "")


def price_changes(sweeps: Sweeps, price: str, alpha: float, ranking: Ranking) -> list[Change]:
    """The values of one panel of `price_figure`, sweep by sweep; only the panel "cvar" depends on alpha and ranking."""
    changes: list[Change] = []
    banded = seed_counts(sweeps)[-1] > 1
    for members in sweeps.values():
        alphas = sorted(members)
        found = [_price_interval(members[at], price, alpha, ranking) for at in alphas]
        changes += [_around(alphas, found)] if banded else []
        changes.append({"x": np.array(alphas), "y": np.array([each.value for each in found])})
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
    if price == "mean":
        return float(tails.rewards.mean())
    return float(tails.kl[0]) if price == "kl" else tails.perplexity


# The schedule


def shares_figure(schedules: dict[str, SoftRiskSchedule], along: Literal["iteration", "share"]) -> go.Figure:
    """kept(m) / B of several schedules (eqs. 8-10), against iteration or share of training; the last one is bold."""
    figure = go.Figure()
    for name, schedule in schedules.items():
        last = name == list(schedules)[-1]
        style = {"shape": "hv", "width": 4 if last else 2, "dash": "solid" if last else "dot"}
        style |= {"color": method_color("ra_rlhf")} if last else {}
        iterations, counts = np.arange(1, schedule.iterations + 1), np.asarray(schedule.kept_counts())
        figure.add_scatter(
            x=iterations if along == "iteration" else 100 * iterations / schedule.iterations,
            y=100 * counts / schedule.batch_size,
            customdata=counts,
            hovertemplate="m %{x:.4g}: %{customdata} episodes",
            name=label_text(name),
            line=style,
        )
    figure.update_xaxes(title_text=ALONG_TITLES[along], title_font_size=13)
    figure.update_yaxes(title_text="kept episodes (% of the batch)", range=[0, 103], title_font_size=13)
    return laid_out(figure, height=400, margin={"t": 60}, legend_y=0.99)


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


def training_figure(earlier: dict[str, pd.DataFrame], runs: dict[str, pd.DataFrame], tail_share: float) -> go.Figure:
    """Mean reward and CVaR of each batch during training.

    earlier: training logs by method; the PPO logs are drawn in grey, and hold mean rewards only. runs: by name, one row
    per iteration with its mean and tail.
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
    for (run, table), color in zip(runs.items(), cycle(RUN_COLORS), strict=False):
        name = label_text(run)
        style = {"name": name, "legendgroup": name, "mode": "lines", "line": {"color": color, "width": 2.5}}
        for col, column in enumerate(("mean", "tail"), start=1):
            figure.add_scatter(x=table["iteration"], y=table[column], showlegend=col == 1, row=1, col=col, **style)
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="iteration", title_font_size=13)
    return laid_out(figure, height=400, margin={"t": 95}, legend_y=0.99)


def batch_figure(batch: Batch | None) -> go.Figure:
    """The episodes of a batch, reward against KL; the episodes kept for the update are coloured."""
    batch = batch or Batch(np.empty(0), np.empty(0), np.empty(0, dtype=bool), [])
    figure = go.Figure()
    dropped = {"color": "#BBBBBB", "size": 8, "symbol": "circle-open", "line_width": 2}
    kept = {"color": method_color("ra_rlhf"), "size": 9}
    for name, style, rows in (("dropped", dropped, ~batch.kept), ("kept", kept, batch.kept)):
        figure.add_scatter(
            x=batch.rewards[rows],
            y=batch.kl[rows],
            text=[batch.texts[row] for row in np.flatnonzero(rows)],
            hovertemplate="%{text}<extra></extra>",
            name=name,
            mode="markers",
            marker=style,
        )
    figure.update_xaxes(title_text="environment reward (logit)", title_font_size=13)
    figure.update_yaxes(title_text="KL (nats)", title_font_size=13)
    return laid_out(figure, height=340, margin={"t": 40}, legend_y=0.99)
