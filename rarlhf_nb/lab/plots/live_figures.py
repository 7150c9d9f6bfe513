"""The figures of live training: the course of the batches' mean and CVaR, and the last batch."""

from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rarlhf_nb.lab.methods import METHODS
from rarlhf_nb.lab.plots.theme import label_text, laid_out, method_color

EARLIER = {"color": "#8A8A8A", "width": 1.5}
RUN_COLORS = [METHODS[key].color for key in ("ra_rlhf", "rlhf", "ra_rlhf_ru", "prompted", "dexperts", "quark", "sft")]
NO_BATCH = pd.DataFrame({"reward": [], "kl": [], "kept": np.empty(0, dtype=bool), "text": []})


def training_figure(earlier: dict[str, pd.DataFrame], runs: dict[str, pd.DataFrame], tail_share: float) -> go.Figure:
    """Mean reward and CVaR of each batch during training.

    earlier: training logs by method; the PPO logs are drawn in grey, and hold mean rewards only. runs: by name, one row
    per iteration with its mean and tail.
    """
    titles = ["mean reward of the batch (logit)", f"CVaR {100 * tail_share:g} % of the batch (logit)"]
    figure = make_subplots(cols=2, subplot_titles=titles, horizontal_spacing=0.1)
    trained = {method: log for method, log in earlier.items() if {"iteration", "env_reward_mean"} <= set(log)}
    dashes = cycle(["dot", "dash", "dashdot", "longdash", "longdashdot"])
    curves = [
        (f"{label_text(method)} (the run)", log.rename(columns={"env_reward_mean": "mean"}), EARLIER | {"dash": dash})
        for (method, log), dash in zip(trained.items(), dashes, strict=False)
    ]
    for (run, table), color in zip(runs.items(), cycle(RUN_COLORS), strict=False):
        curves.append((label_text(run), table, {"color": color, "width": 2.5}))
    figure.add_scatter(x=[], y=[], showlegend=False, row=1, col=2)  # gives the empty panel its axes
    for name, table, line in curves:
        style = {"name": name, "legendgroup": name, "mode": "lines", "line": line}
        for col, column in enumerate(("mean", "tail"), start=1):
            if column in table:
                figure.add_scatter(x=table["iteration"], y=table[column], showlegend=col == 1, row=1, col=col, **style)
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="iteration", title_font_size=13)
    return laid_out(figure, height=400, margin={"t": 95}, legend_y=0.99)


def batch_figure(batch: pd.DataFrame) -> go.Figure:
    """The episodes of a batch, reward against KL; those kept for the update are coloured.

    batch: columns reward, kl, kept, and text, the hover label.
    """
    figure = go.Figure()
    dropped = {"color": "#BBBBBB", "size": 8, "symbol": "circle-open", "line_width": 2}
    kept = {"color": method_color("ra_rlhf"), "size": 9}
    for name, marker, rows in (("dropped", dropped, batch[~batch["kept"]]), ("kept", kept, batch[batch["kept"]])):
        style = {"name": name, "mode": "markers", "marker": marker, "hovertemplate": "%{text}<extra></extra>"}
        figure.add_scatter(x=rows["reward"], y=rows["kl"], text=rows["text"], **style)
    figure.update_xaxes(title_text="environment reward (logit)", title_font_size=13)
    figure.update_yaxes(title_text="KL (nats)", title_font_size=13)
    return laid_out(figure, height=340, margin={"t": 40}, legend_y=0.99)
